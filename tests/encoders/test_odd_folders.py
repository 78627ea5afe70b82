"""Odd types in the JSON files of a saved model are refused by name, and what a machine decides is no identity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from freezealign import FreezeAlign, FrozenEncoder
from freezealign.encoders.identity import modules_digest

GOLDEN = Path(__file__).parents[1] / "golden" / "format-2"
ENCODER = "image_0_FrozenEncoder/config.json"


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        *(("router_config.json", "structure", odd) for odd in (3, [], {"image": 3}, {"image": [[]]}, {"image": {}})),
        *(("router_config.json", "types", odd) for odd in (None, {"image_0_FrozenEncoder": 3})),
        *((ENCODER, key, 3) for key in ("name", "backend", "modality", "source", "fingerprint", "preprocessing")),
        *((ENCODER, key, []) for key in ("name", "backend", "modality", "source", "fingerprint", "preprocessing")),
    ],
)
def test_odd_types_are_refused_by_name(tmp_path, file, key, value):
    folder = shutil.copytree(GOLDEN, tmp_path / "model")
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, key: value}))
    with pytest.raises(ValueError, match=Path(file).name):
        FreezeAlign.from_pretrained(folder)


@pytest.mark.parametrize("setting", ["fused_attn", "training"])
def test_what_the_machine_decides_is_no_configuration(setting):
    model = timm.create_model("vit_tiny_patch16_224", img_size=28, patch_size=7, embed_dim=24, depth=1, num_heads=2)
    before, attention = modules_digest(model), model.blocks[0].attn
    setattr(attention, setting, not getattr(attention, setting))
    assert modules_digest(model) == before
    attention.num_heads = 4
    assert modules_digest(model) != before


def test_a_folder_of_timm_is_read_from_safetensors_alone_and_whole(tmp_path):
    timm.models._hub.save_for_hf(timm.create_model("test_resnet"), tmp_path, safe_serialization=True)
    assert FrozenEncoder(str(tmp_path)).fingerprint == FrozenEncoder(str(tmp_path)).fingerprint
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if name != "layer1.0.conv1.weight"}, file)
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1\.weight"):
        FrozenEncoder(str(tmp_path))
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(ValueError, match="no safetensors file"):
        FrozenEncoder(str(tmp_path))
