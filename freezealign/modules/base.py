"""The contract every block obeys, kept compatible with sentence-transformers without importing it."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor, nn
from typing_extensions import NotRequired

from freezealign.batch import Features
from freezealign.files import load_tensors, read_object, save_tensors, write_json_atomically
from freezealign.forms import formed
from freezealign.hub import locate_folder

POSITIVE = (Integral, lambda value: value >= 1, "a whole number of at least 1")
ABOVE_ZERO = (Real, lambda value: 0 < float(value) < math.inf, "a finite number above 0")
OPTIONS: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "in_dim": POSITIVE,
    "out_dim": POSITIVE,
    "neighbours": POSITIVE,
    "landmarks": (Integral, lambda value: value >= 0, "a whole number of at least 0"),
    "width": (Real, lambda value: 0 < value < 1e6, "a number between 0 and a million"),
    "power": ABOVE_ZERO,
    "dropout": (Real, lambda value: 0 <= value <= 1, "a share in [0, 1]"),
    "cls": (bool, lambda value: True, "true or false"),
    "bias": (Real, math.isfinite, "a finite number"),
    **dict.fromkeys(("temperature", "minimum", "maximum"), (Real, lambda value: True, "a number")),
}
"""What the options of blocks are: of which type, within which range, and that in words."""


def check_options(**options: Any) -> None:
    """Raise a ``ValueError`` for an option that is not what :data:`OPTIONS` says; a truth value is no number."""
    for name, value in options.items():
        kind, fits, words = OPTIONS[name]
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool) or not fits(value):
            raise ValueError(f"{name} must be {words}, got {value!r}.")


class Module(nn.Module):
    """A block: takes a dict of features, returns a dict of features, and can be saved and loaded.

    A subclass lists in ``config_keys`` the constructor arguments that are also attributes; saving writes them as JSON
    and the block's parameters as safetensors, loading calls the constructor with them.
    """

    config_file_name: ClassVar[str] = "config.json"
    weights_file_name: ClassVar[str] = "model.safetensors"
    config_keys: ClassVar[list[str]] = []
    save_in_root: ClassVar[bool] = False
    forward_kwargs: ClassVar[set[str]] = set()

    def forward(self, features: Features) -> Features:
        """Return ``features`` with this block's outputs added; the input dict is left as it was."""
        raise NotImplementedError

    def get_config_dict(self) -> dict[str, Any]:
        """Return the JSON-serialisable constructor arguments."""
        return {key: getattr(self, key) for key in self.config_keys}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write ``config.json`` and, if the block has parameters, ``model.safetensors`` into ``output_path``.

        Only safetensors is written: ``safe_serialization`` is accepted because sentence-transformers passes it.
        """
        folder = Path(output_path)
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomically(folder / self.config_file_name, self.get_config_dict())
        if tensors := self.trained_tensors():
            save_tensors(folder / self.weights_file_name, tensors)

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.get_config_dict().items())
        return f"{type(self).__name__}({options})"

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a saved model must carry."""
        return self.state_dict()

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> Module:
        """Load the block from a folder, or from ``subfolder`` of a model on the hub.

        Further keyword arguments are those sentence-transformers hands to every module; they do not concern this one.

        Raises:
            ValueError: If the folder is incomplete, an option is none that the block takes, or a tensor is missing, has
                another shape or holds NaN or infinity.
        """
        hub: dict[str, Any] = {"token": token, "revision": revision, "cache_folder": cache_folder}
        return cls.from_folder(locate_folder(model_name_or_path, subfolder, local_files_only=local_files_only, **hub))

    @classmethod
    def from_folder(cls, folder: Path) -> Module:
        """Load the block from a local ``folder`` as :meth:`save` wrote it."""
        path = folder / cls.config_file_name
        config = read_object(path)
        if config.get("kind") == "token":  # what format 1 of model folders called it
            config["kind"] = "linear+mlp"
        unknown = sorted(set(config) - set(cls.config_keys))
        if unknown:
            raise ValueError(f"{folder}: {cls.__name__} has no option {unknown}; it takes {cls.config_keys}.")
        hints = get_type_hints(cls.__init__)
        formed(path, config, {key: NotRequired[hints.get(key, Any)] for key in cls.config_keys})
        with torch.device("meta"):  # so that sizes are compared before anything is allocated
            expected = cls._made(config, folder).state_dict()
        tensors = load_tensors(folder / cls.weights_file_name, expected) if expected else {}
        module = cls._made(config, folder)
        module.load_state_dict(tensors)
        return module

    @classmethod
    def _made(cls, config: dict[str, Any], folder: Path) -> Module:
        try:
            return cls(**config)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{folder}: {config} does not make a {cls.__name__} ({error}).") from error


def require(features: Features, key: str, block: nn.Module, remedy: str) -> Tensor:
    """Return ``features[key]``, or raise a ``ValueError`` that names the block, what it got, and the remedy."""
    value = features.get(key)
    if value is None:
        raise ValueError(f"{type(block).__name__} needs '{key}' but got {sorted(features)}: {remedy}")
    return value
