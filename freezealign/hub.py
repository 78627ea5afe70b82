"""Turn the many ways a hub can be out of reach into one error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from freezealign.files import inside, is_folder

TRANSPORT_ERRORS = frozenset({"ConnectionError", "TransportError", "Timeout"})


@contextmanager
def explain_hub_errors(name: str, revision: str | None = None, remedy: str = "") -> Iterator[None]:
    """Re-raise what goes wrong while ``name`` is loaded.

    The libraries in between wrap one and the same failure differently, so everything an error was raised from counts.

    Args:
        name: What is loaded.
        revision: The revision asked for.
        remedy: What to do where the hub cannot be reached.

    Raises:
        ConnectionError: If the hub cannot be reached and nothing is cached.
        ValueError: If the hub has no such model or revision, or the model is gated.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except Exception as error:
        chain = list(_chain(error))

        def has(*kinds: type) -> bool:
            return any(isinstance(link, kinds) for link in chain)

        if has(GatedRepoError):
            raise ValueError(f"'{name}' is gated: accept its licence on its page, then run 'hf auth login'.") from error
        if has(RevisionNotFoundError):
            raise ValueError(f"'{name}' has no revision '{revision}' on the hub.") from error
        if has(RepositoryNotFoundError, HFValidationError):
            raise ValueError(f"'{name}' is neither a local folder nor a model on the hub.") from error
        names = {kind.__name__ for link in chain for kind in type(link).__mro__}  # of whichever HTTP library
        refused = any(isinstance(link, OSError) and "couldn't connect" in str(link) for link in chain)
        if has(LocalEntryNotFoundError, OfflineModeIsEnabled) or names & TRANSPORT_ERRORS or refused:
            raise ConnectionError(
                f"cannot reach the model hub for '{name}', and it is not in the local cache. {remedy}".rstrip()
            ) from error
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def locate_folder(
    name_or_path: str,
    subfolder: str = "",
    *,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    patterns: Sequence[str] = ("*.json", "*.safetensors", "*.md"),
    remedy: str = "",
) -> Path:
    """Return a local folder for a path or a hub id, downloading only files of ``patterns``, below ``subfolder``.

    Raises:
        ValueError: If ``subfolder`` climbs out of the model folder.
        ConnectionError: If the model has to come from the hub and the hub cannot be reached.
    """
    folder = Path(name_or_path)
    if not is_folder(folder):
        from huggingface_hub import snapshot_download

        prefix = f"{subfolder}/" if subfolder else ""
        with explain_hub_errors(name_or_path, revision, remedy):
            folder = Path(
                snapshot_download(
                    name_or_path,
                    revision=revision,
                    token=token,
                    cache_dir=cache_folder,
                    local_files_only=local_files_only,
                    allow_patterns=[f"{prefix}{pattern}" for pattern in patterns],
                    ignore_patterns=["onnx/*", "openvino/*", "original/*", "consolidated.*"],
                )
            )
    return inside(folder, subfolder)
