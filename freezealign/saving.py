"""Saving and loading a model: sentence-transformers' folder layout, JSON and safetensors only.

``modules.json``, ``router_config.json`` and one folder a block are what sentence-transformers reads;
``config_freezealign.json`` and ``logit_scale/`` hold the rest. A class is looked up in our own table by the name in the
file, never imported by it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from typing_extensions import NotRequired

import freezealign
from freezealign.card import TRAINING, CardData, write_card
from freezealign.encoders import FrozenEncoder, JointEncoder
from freezealign.files import changed_files, file_digest, inside, is_leftover, read_object, write_json_atomically
from freezealign.forms import check_version, formed
from freezealign.hub import explain_hub_errors, locate_folder
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
from freezealign.space import Space
from freezealign.space.recipes import EncoderLike, as_encoder

FORMAT_VERSION = 2
LOGIT_SCALE_FOLDER = "logit_scale"
ROUTER_TYPE = "sentence_transformers.base.modules.router.Router"
NORMALIZE_TYPE = "sentence_transformers.base.modules.normalize.Normalize"


CLASSES: dict[str, type[Module]] = {
    f"freezealign.{block.__name__}": block
    for block in (
        FrozenEncoder,
        JointEncoder,
        KernelHead,
        LogitScale,
        Normalize,
        Pooling,
        ProjectionHead,
        RelativeHead,
        TokenProjector,
    )
}
"""The blocks' public names, which model folders store."""


class Parts(NamedTuple):
    """What a folder holds: the blocks of each tower, the temperature, and the card's data."""

    towers: dict[str, list[Module]]
    logit_scale: LogitScale
    card: CardData


def save(space: Space, card: CardData, path: Path, model_id: str) -> None:
    """Write ``space`` and its ``card`` to ``path``; the card calls it ``model_id``.

    Raises:
        TypeError: If a block is of a class that loading would not know.
    """
    kinds = {type(block) for tower in space.named_towers.values() for block in tower}
    if unknown := sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds - set(CLASSES.values())):
        raise TypeError(
            f"a model with blocks of class {unknown} could not be loaded again; ours are {sorted(CLASSES)}."
        )
    path.mkdir(parents=True, exist_ok=True)
    structure: dict[str, list[str]] = {}
    types: dict[str, str] = {}
    for name, tower in space.named_towers.items():
        for position, block in enumerate(tower):
            folder = f"{name}_{position}_{type(block).__name__}"
            types[folder] = f"freezealign.{type(block).__name__}"
            structure.setdefault(name, []).append(folder)
            block.save(str(path / folder))
    routes = {str(key): name for key, name in route_mappings(space).items()}
    parameters = {"default_route": space.modalities[0], "allow_empty_key": True, "route_mappings": routes}
    write_json_atomically(
        path / "router_config.json", {"types": types, "structure": structure, "parameters": parameters}
    )
    _write_sentence_transformers_files(path)
    space.logit_scale.save(str(path / LOGIT_SCALE_FOLDER))
    config = {
        "format_version": FORMAT_VERSION,
        "freezealign": freezealign.__version__,
        "files": _digests(path, [*types, LOGIT_SCALE_FOLDER]),
        "card": asdict(card),
    }
    write_json_atomically(path / "config_freezealign.json", config)
    write_card(space, card, path, model_id)


def push(space: Space, card: CardData, repo_id: str, *, token: bool | str | None, private: bool, message: str) -> str:
    """Upload what :func:`save` writes, and return the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder, explain_hub_errors(repo_id):
        save(space, card, Path(folder), repo_id)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    return str(commit.commit_url)


def load(
    name_or_path: str, *, encoders: Mapping[str, EncoderLike], revision: str | None, token: bool | str | None
) -> Parts:
    """Read the parts of a model from a folder or the hub; see :meth:`freezealign.FreezeAlign.from_pretrained`."""
    root = locate_folder(name_or_path, revision=revision, token=token)
    path, router_path = root / "config_freezealign.json", root / "router_config.json"
    config = read_object(path, {"format_version": int})
    check_version(root, config, FORMAT_VERSION)
    card_form = {"training": dict, "evaluations": dict[str, dict[str, Any]]}
    formed(path, config, {"card": card_form, "files": NotRequired[dict[str, str]]})
    card = CardData(config["card"]["training"], config["card"]["evaluations"])
    if card.training:
        formed(path, card.training, TRAINING, "card.training")
    router = read_object(router_path, {"types": dict[str, str], "structure": dict[str, list[str]]})
    types, structure = router["types"], router["structure"]
    if unknown := sorted(set(encoders) - set(structure)):
        raise ValueError(f"encoders= names {unknown}, but the model has {list(structure)}.")
    towers = {
        name: [_load_block(root, folder, types, encoders.get(name), name) for folder in folders]
        for name, folders in structure.items()
    }
    if unused := sorted(set(types).difference(*structure.values())):
        raise ValueError(
            f"{router_path}: {unused} are of no tower in 'structure'; this is not what freezealign writes."
        )
    for name, blocks in towers.items():
        if not isinstance(next(iter(blocks), None), FrozenEncoder):
            raise ValueError(f"{router_path}: 'structure.{name}' does not start with a FrozenEncoder.")
    logit_scale = LogitScale.from_folder(inside(root, LOGIT_SCALE_FOLDER))
    # last, because what is wrong with a file says more than that it was changed; folders of before say nothing
    if changed := changed_files(root, config.get("files", {})):
        raise ValueError(
            f"{root}: '{changed[0]}' is not as it was saved, by its SHA-256: damaged, or edited. Fetch or save it "
            f"anew; if the change is meant, take 'files' out of {path.name}."
        )
    return Parts(towers, logit_scale, card)


def _digests(path: Path, folders: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each file that loading reads."""
    found = [path / "router_config.json", *(file for folder in folders for file in sorted((path / folder).rglob("*")))]
    kept = [file for file in found if file.is_file() and not is_leftover(file)]
    return {file.relative_to(path).as_posix(): file_digest(file) for file in kept}


def _load_block(root: Path, folder: str, types: Mapping[str, str], other: EncoderLike | None, modality: str) -> Module:
    """Load one block, or put ``other`` in place of a frozen encoder."""
    # format 1 named a class by its file: freezealign.modules.pooling.Pooling
    kind = re.sub(r"^freezealign\.[a-z_.]+\.", "freezealign.", types.get(folder, "nothing"))
    if kind not in CLASSES:
        raise ValueError(f"{root}: '{folder}' is of class '{kind}', which is none of ours: {sorted(CLASSES)}.")
    path = inside(root, folder)
    if not issubclass(CLASSES[kind], FrozenEncoder) or other is None:
        return CLASSES[kind].from_folder(path)
    encoder = as_encoder(other, modality)
    width = read_object(path / FrozenEncoder.config_file_name, {"dim": int})["dim"]
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
    write_json_atomically(path / "modules.json", entries)
    (path / "1_Normalize").mkdir(exist_ok=True)
    keys = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    write_json_atomically(path / "1_Normalize" / "config.json", keys)
    write_json_atomically(
        path / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "__version__": {"freezealign": freezealign.__version__, "pytorch": str(torch.__version__)},
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
