"""The folder an encoder is loaded from: where it is, and what in it may be read."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from freezealign.encoders.base import Encoder, EncoderReference
from freezealign.encoders.packaged import PACKAGES, offline_remedy
from freezealign.encoders.text import TextEncoder
from freezealign.files import inside, read_json, regular
from freezealign.hub import locate_folder
from freezealign.modality import modality_of

READ = ("*.json", "*.txt", "*.model", "*.vocab", "*.bpe", "*.codes", "*.spm", "*.tiktoken", "*.safetensors")
"""What is fetched from a hub: configurations, vocabularies, weights."""
PICKLED = ("*.bin", "*.pth", "*.pt")
JSON_FILES: dict[str, type | None] = {
    "config.json": dict,
    "modules.json": list,
    "tokenizer_config.json": dict,
    "preprocessor_config.json": dict,
    "processor_config.json": dict,
    "special_tokens_map.json": dict,
    "added_tokens.json": dict,
    "sentence_bert_config.json": dict,
    "config_sentence_transformers.json": dict,
    "model.safetensors.index.json": dict,
    "tokenizer.json": None,
    "vocab.json": None,
}
"""The JSON files that libraries read, and what each holds; large ones are only looked at, not parsed twice."""
LAYERS = frozenset({"num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "depth", "depths"})
SIZE = re.compile(r"size|dim|heads|channels|embed|positions|features|^[dn]_")
LAYER_LIMIT, SIZE_LIMIT = 1000, 2**24


def locate(reference: EncoderReference, allow_pickle: bool = False, **hub: Any) -> Path:
    """Return the folder of a package, a local one, or one of the hub's cache, fetched if need be; never code.

    ``hub`` is what :func:`freezealign.hub.locate_folder` takes besides.

    Raises:
        ConnectionError: If it has to come from the hub and that cannot be reached.
        ModuleNotFoundError: If its package is not installed.
        ValueError: If there is no such model, or a file of a package is not the released one.
    """
    remedy = offline_remedy(reference.modality)
    if reference.package is not None:
        package = PACKAGES.get(reference.package)
        if package is None:
            raise ValueError(f"no package of weights called {reference.package!r}; there are {sorted(PACKAGES)}.")
        if not package.parts or package.is_installed():
            return package.folder()
        remedy = f"{package.remedy} {remedy}"
    source = reference.source.removeprefix("hf-hub:").removeprefix("local-dir:")
    patterns = READ + PICKLED if allow_pickle else READ
    return locate_folder(source, revision=reference.revision, patterns=patterns, remedy=remedy, **hub)


def module_folders(folder: Path) -> list[Path]:
    """Return the folders that hold a model's parts: those that its ``modules.json`` names, or itself.

    Raises:
        ValueError: If that is no list of modules, or names a folder elsewhere.
    """
    path = folder / "modules.json"
    if not os.path.lexists(path):
        return [folder]
    modules = _json(folder, path, list)
    for entry in modules:
        keys = entry.keys() if isinstance(entry, dict) else ()
        if not {"name", "path", "type"} <= set(keys) or not isinstance(entry["path"], str):
            raise ValueError(f"{path}: {str(entry)[:80]!r} is no module; it is damaged.")
    return [inside(folder, entry["path"]) for entry in modules]


def check_folder(folder: Path, allow_pickle: bool = False) -> None:
    """Look at what libraries read in the folder of a model and in those of its parts.

    Raises:
        ValueError: If a JSON file is no regular file, lies elsewhere, is not what it should be or states a size that no
            encoder has, or if weights are pickled and ``allow_pickle`` is false.
    """
    for part in {folder: None, **dict.fromkeys(module_folders(folder))}:
        contents = {
            name: _json(folder, part / name, kind) for name, kind in JSON_FILES.items() if os.path.lexists(part / name)
        }
        config, index = contents.get("config.json", {}), contents.get("model.safetensors.index.json", {})
        _check_sizes(config, part / "config.json")
        shards = index.get("weight_map", {})
        named = [config.get("transformers_weights"), *(shards.values() if isinstance(shards, dict) else [shards])]
        opened = {str(name) for name in named if name and not str(name).endswith((".safetensors", ".index.json"))}
        if not any(part.glob("*.safetensors")):
            opened |= {path.name for path in part.glob("pytorch_model*")}
        if opened and not allow_pickle:
            raise no_safetensors(part)


def _json(root: Path, path: Path, kind: type | None) -> Any:
    regular(path)
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root  # where the hub's cache links to
    if not any(path.resolve().is_relative_to(allowed.resolve()) for allowed in (root, blobs)):
        raise ValueError(f"{path} is a link out of the model's folder; put the file itself there.")
    if kind is None:
        return None
    content = read_json(path)
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a {kind.__name__}; it is damaged.")
    return content


def _check_sizes(config: dict[str, Any], path: Path) -> None:
    for key, value in config.items():
        if isinstance(value, dict):
            _check_sizes(value, path)
        layers = key in LAYERS
        if not layers and not SIZE.search(key):
            continue
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and (
                not number <= (LAYER_LIMIT if layers else SIZE_LIMIT) or (number < 0 and (layers or "heads" in key))
            ):
                raise ValueError(f"{path}: '{key}' is {value}, which no encoder has; it is damaged.")


def check_capacity(folder: Path, build: Callable[[], nn.Module]) -> None:
    """Compare what ``build`` makes, on the meta device, with the bytes of the folder's weights, before it is made.

    Raises:
        ValueError: If it has more numbers than the folder could hold, four a byte.
    """
    try:
        with torch.device("meta"):
            wanted = sum(tensor.numel() for tensor in build().state_dict().values())
    except Exception:  # some models cannot be made there; what cannot be made at all is told by making it
        return
    held = sum(path.stat().st_size for suffix in ("*.safetensors", *PICKLED) for path in folder.glob(suffix))
    if not held:
        raise no_safetensors(folder)
    if wanted > 4 * held:
        raise ValueError(
            f"{folder / 'config.json'} describes a model of {wanted:,} numbers, but the weights beside it have "
            f"{held:,} bytes; one of them is damaged."
        )


def no_safetensors(source: Any) -> ValueError:
    """Return the error for a folder or repository with no weights but pickled ones."""
    return ValueError(
        f"'{source}' has no safetensors file, and pickled weights are not opened: convert them once, with "
        "save_pretrained, or say FrozenEncoder(…, allow_pickle=True), which lets torch unpickle tensors and no more."
    )


@torch.no_grad()
def check_item(encoder: Encoder) -> None:
    """Put one item through an encoder, so that what libraries trip over at the first one is told when it is opened.

    Of a text all the way, which is short; a picture is only preprocessed, as a large encoder takes seconds for one.
    """
    probe = modality_of(encoder.kind).probe
    if probe is None:
        return
    with warnings.catch_warnings():  # nobody is concerned if this text is cut
        warnings.simplefilter("ignore")
        batch = encoder.preprocess([probe])
        if isinstance(encoder, TextEncoder):
            encoder.eval()(batch)
            encoder.has_warned = False


@contextmanager
def explain_faults(source: str) -> Iterator[None]:
    """Re-raise what libraries raise over the files of ``source`` as a ``ValueError`` that names it."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except (OSError, ValueError) as error:
        named, told = source in str(error), str(error).replace(source, "")
        if "safetensors" in told and not (named and "allow_pickle" in told):
            raise no_safetensors(source) from error
        if isinstance(error, ConnectionError) or (isinstance(error, OSError) and error.filename is not None):
            raise
        told = str(error)[:1000]
        raise ValueError(told if named else f"'{source}': {told}") from error
    except Exception as error:
        told = f"{type(error).__name__}: {error}"[:500]
        raise ValueError(f"the files of '{source}' do not make an encoder ({told}).") from error
