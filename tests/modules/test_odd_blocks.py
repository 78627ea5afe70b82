"""Folders of blocks that hold odd options or damaged weights: refused by name, whatever the block."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from freezealign import modules
from freezealign.modules import KernelHead, LogitScale, Module, ProjectionHead, RelativeHead, TokenProjector

BLOCKS = {
    "KernelHead": lambda: KernelHead(6, 4, landmarks=3),
    "RelativeHead": lambda: RelativeHead(6, landmarks=3, neighbours=2),
    "LogitScale": lambda: LogitScale(bias=-10.0),
    "ProjectionHead": lambda: ProjectionHead(6, 4),
    "TokenProjector": lambda: TokenProjector(6, 4, cls=True),
    "Pooling": modules.Pooling,
    "Normalize": modules.Normalize,
}
ODD = [0, -1, 1.5, "a", "", None, True, [], {"a": 1}, float("inf"), float("nan"), 10**9, 10**30, 10**400]
FINE = {
    "width": (1.5,),
    "power": (1.5, 10**9, 10**30),
    "neighbours": (10**9, 10**30, 10**400),
    "dropout": (0,),
    "cls": (True,),  # as it was saved
    "maximum": (1.5, 10**9, 10**30),
    "bias": (0, -1, 1.5, 10**9),
}
"""Odd values that make sense."""


def test_every_block_is_here():
    assert set(BLOCKS) == set(modules.__all__) - {"Module"}


def save(name: str, folder) -> Module:
    torch.manual_seed(0)
    block = BLOCKS[name]()
    block.save(str(folder))
    return block


@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:8])
@pytest.mark.parametrize(("name", "key"), [(name, key) for name in BLOCKS for key in BLOCKS[name]().config_keys])
def test_odd_option_is_refused_by_name(tmp_path, name, key, value):
    block = save(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    if any(value is fine or (value == fine and not isinstance(value, bool)) for fine in FINE.get(key, ())):
        loaded = type(block).load(str(tmp_path))
        assert all(
            torch.equal(one, other) for one, other in zip(loaded.state_dict().values(), block.state_dict().values())
        )
        return
    with pytest.raises(ValueError, match=str(tmp_path)):
        type(block).load(str(tmp_path))


DIRECT = [
    (lambda: KernelHead(6, width=0), "width must be a number between 0 and a million, got 0"),
    (lambda: KernelHead(0), "in_dim must be a whole number of at least 1, got 0"),
    (lambda: RelativeHead(6, neighbours=0), "neighbours must be a whole number of at least 1, got 0"),
    (lambda: RelativeHead(6, power=float("nan")), "power must be a finite number above 0, got nan"),
    (lambda: ProjectionHead(6, 4.0), "out_dim must be a whole number of at least 1, got 4.0"),
    (lambda: TokenProjector(6, cls="no"), "cls must be true or false, got 'no'"),
    (lambda: TokenProjector(6, dropout=2), "dropout must be a share in [0, 1], got 2"),
    (lambda: LogitScale(maximum="high"), "maximum must be a number, got 'high'"),
]


@pytest.mark.parametrize(("make", "message"), DIRECT, ids=[message for _, message in DIRECT])
def test_odd_option_is_named_when_a_block_is_made(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


TENSORS = [(name, key) for name in BLOCKS for key in BLOCKS[name]().state_dict()]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("name", "key"), TENSORS)
def test_weight_that_is_not_finite_is_refused_by_name(tmp_path, name, key, value):
    block = save(name, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[key].view(-1)[-1] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{tmp_path}.*'{key}' holds NaN or infinity"):
        type(block).load(str(tmp_path))


@pytest.mark.parametrize("value", [0.0, -1.0, 0.6])
def test_saved_temperature_outside_its_bounds_is_refused(tmp_path, value):
    save("LogitScale", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "temperature": torch.tensor(value)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{tmp_path}: the temperature is {value}"):
        LogitScale.load(str(tmp_path))
