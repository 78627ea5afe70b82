"""One small adapter per kind of frozen encoder."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from freezealign.encoders.base import Encoder, EncoderReference
from freezealign.encoders.hub import cached_commit
from freezealign.encoders.split import is_packaged

__all__ = ["Encoder", "EncoderReference", "load_encoder"]

BACKENDS = ("callable", "sentence_transformers", "timm", "transformers")

_FACTORIES: dict[str, Callable[[], Encoder]] = {}


def register_factory(name: str, factory: Callable[[], Encoder]) -> None:
    """Make ``factory`` what loads the ``callable`` encoder called ``name``."""
    _FACTORIES[name] = factory


def load_encoder(reference: EncoderReference) -> Encoder:
    """Load what ``reference`` points to, importing only the backend it needs.

    Raises:
        ValueError: If the backend is unknown, a callable encoder is not registered in this process, or there is no
            such layer.
    """
    encoder = _load_whole(reference)
    if reference.layer is None:
        return encoder
    from freezealign.encoders.layers import OneLayer

    return OneLayer(encoder, reference.layer)


def _load_whole(reference: EncoderReference) -> Encoder:
    """Load the encoder with all its layers."""
    if reference.backend not in BACKENDS:
        raise ValueError(f"'{reference.name}' has the unknown backend {reference.backend!r}; there are {BACKENDS}.")
    if reference.backend == "callable":
        if reference.source not in _FACTORIES:
            raise ValueError(
                f"the encoder '{reference.name}' is a function and was not saved with the model; register it with "
                f"register_encoder('{reference.name}', function, modality='{reference.modality}') or pass "
                f"encoders={{'{reference.modality}': …}}."
            )
        return _FACTORIES[reference.source]()
    backend = importlib.import_module(f"freezealign.encoders.{reference.backend}")
    encoder: Encoder = backend.load(reference)
    encoder.commit = None if is_packaged(reference.package) else cached_commit(reference.source, reference.revision)
    return encoder
