"""Saving and loading a model: sentence-transformers' folder layout, JSON and safetensors only.

``modules.json``, ``router_config.json`` and one folder a block are what sentence-transformers reads;
``config_freezealign.json`` and ``logit_scale/`` hold the rest. A class is looked up in our own table by the name in the
file, never imported by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import freezealign
from freezealign.card import CardData, write_card
from freezealign.encoders import FrozenEncoder
from freezealign.files import check_version, inside, read_object, write_json
from freezealign.hub import locate_folder
from freezealign.integrations.sentence_transformers import route_mappings
from freezealign.modules import (
    KernelHead,
    LogitScale,
    Module,
    Normalize,
    Pooling,
    ProjectionHead,
    RelativeHead,
    TokenProjector,
)
from freezealign.space.recipes import EncoderLike, as_encoder

if TYPE_CHECKING:
    from freezealign.model import FreezeAlign

FORMAT_VERSION = 1
LOGIT_SCALE_FOLDER = "logit_scale"
ROUTER_TYPE = "sentence_transformers.base.modules.router.Router"
NORMALIZE_TYPE = "sentence_transformers.base.modules.normalize.Normalize"


def class_name(block: type) -> str:
    """Return the public name of a block's class, as model folders store it: ``freezealign.Pooling``."""
    return f"freezealign.{block.__name__}"


CLASSES: dict[str, type[Module]] = {
    class_name(block): block
    for block in (
        FrozenEncoder,
        KernelHead,
        LogitScale,
        Normalize,
        Pooling,
        ProjectionHead,
        RelativeHead,
        TokenProjector,
    )
}


def save(model: FreezeAlign, path: Path, model_id: str) -> None:
    """Write ``model`` to ``path``; its card calls it ``model_id``.

    Raises:
        TypeError: If a block is of a class that loading would not know.
    """
    _check_classes(model)
    path.mkdir(parents=True, exist_ok=True)
    structure: dict[str, list[str]] = {}
    types: dict[str, str] = {}
    for name in model.towers:
        for position, block in enumerate(model.tower(name)):
            folder = f"{name}_{position}_{type(block).__name__}"
            types[folder] = class_name(type(block))
            structure.setdefault(name, []).append(folder)
            block.save(str(path / folder))
    routes = {str(key): name for key, name in route_mappings(model).items()}
    parameters = {"default_route": model.modalities[0], "allow_empty_key": True, "route_mappings": routes}
    write_json(path / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})
    _write_sentence_transformers_files(path)
    model.logit_scale.save(str(path / LOGIT_SCALE_FOLDER))
    write_json(
        path / "config_freezealign.json",
        {
            "format_version": FORMAT_VERSION,
            "freezealign": freezealign.__version__,
            "card": model.model_card_data.to_dict(),
        },
    )
    write_card(model, model.model_card_data, path, model_id)


def _check_classes(model: FreezeAlign) -> None:
    kinds = {type(block) for name in model.towers for block in model.tower(name)}
    unknown = sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds - set(CLASSES.values()))
    if unknown:
        raise TypeError(
            f"a model with blocks of class {unknown} could not be loaded again; ours are {sorted(CLASSES)}."
        )


def load(
    name_or_path: str,
    *,
    encoders: Mapping[str, EncoderLike],
    device: str | torch.device | None,
    revision: str | None,
    token: bool | str | None,
) -> FreezeAlign:
    """Read a model from a folder or the hub; see :meth:`FreezeAlign.from_pretrained`."""
    from freezealign.model import FreezeAlign

    root = locate_folder(name_or_path, revision=revision, token=token)
    config = read_object(root / "config_freezealign.json", ("format_version", "card"))
    check_version(root, config, FORMAT_VERSION)
    router = read_object(root / "router_config.json", ("types", "structure"))
    unknown = sorted(set(encoders) - set(router["structure"]))
    if unknown:
        raise ValueError(f"encoders= names {unknown}, but the model has {list(router['structure'])}.")
    towers = {
        name: [_load_block(root, folder, router["types"], encoders.get(name), name) for folder in folders]
        for name, folders in router["structure"].items()
    }
    logit_scale = LogitScale.from_folder(inside(root, LOGIT_SCALE_FOLDER))
    assert isinstance(logit_scale, LogitScale)
    model = FreezeAlign(towers, logit_scale=logit_scale, device=device)
    model.model_card_data = CardData.from_dict(config["card"])
    return model


def _load_block(root: Path, folder: str, types: Mapping[str, str], other: EncoderLike | None, modality: str) -> Module:
    """Load one block, or put ``other`` in place of a frozen encoder."""
    kind = types.get(folder, "nothing")
    if kind not in CLASSES:
        raise ValueError(f"{root}: '{folder}' is of class '{kind}', which is none of ours: {sorted(CLASSES)}.")
    path = inside(root, folder)
    if CLASSES[kind] is not FrozenEncoder or other is None:
        return CLASSES[kind].from_folder(path)
    encoder = as_encoder(other, modality)
    width = read_object(path / FrozenEncoder.config_file_name, ("dim",))["dim"]
    if encoder.get_embedding_dimension() != width:
        raise ValueError(
            f"'{encoder.name}' is {encoder.get_embedding_dimension()} wide, but the {modality} blocks were trained for "
            f"{width}; load the model as it is and use swap_encoder('{modality}', …, reset=True)."
        )
    return encoder


def _write_sentence_transformers_files(path: Path) -> None:
    """Write what sentence-transformers needs to read the folder as Router + Normalize."""
    entries: list[dict[str, Any]] = [
        {"idx": 0, "name": "0", "path": "", "type": ROUTER_TYPE},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": NORMALIZE_TYPE},
    ]
    write_json(path / "modules.json", entries)
    (path / "1_Normalize").mkdir(exist_ok=True)
    keys = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    write_json(path / "1_Normalize" / "config.json", keys)
    write_json(
        path / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "__version__": {"freezealign": freezealign.__version__, "pytorch": str(torch.__version__)},
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
