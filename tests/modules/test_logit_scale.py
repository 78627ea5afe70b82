"""The learnable temperature and bias."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freezealign import LogitScale


def step(scale: LogitScale, direction: float, learning_rate: float) -> None:
    """One optimiser step that pushes the temperature up (+1) or down (-1), and the clamp that follows."""
    optimizer = torch.optim.SGD(scale.parameters(), lr=learning_rate)
    (-direction * scale.temperature).backward()
    optimizer.step()
    scale.clamp_()
    scale.zero_grad()


def test_temperature_starts_at_the_papers_value():
    assert LogitScale().temperature.item() == pytest.approx(0.07)


def test_default_bounds_are_the_papers():
    assert (LogitScale().minimum, LogitScale().maximum) == (0.001, 0.5)


def test_temperature_divides_the_similarity():
    similarity = torch.tensor([[1.0, -0.5], [0.0, 0.2]])
    torch.testing.assert_close(LogitScale(0.1)(similarity), similarity * 10)


def test_the_temperature_is_one_trainable_number():
    assert [parameter.numel() for parameter in LogitScale().parameters() if parameter.requires_grad] == [1]


@pytest.mark.parametrize(("direction", "bound"), [(1, 0.5), (-1, 0.001)])
def test_temperature_is_clamped_at_both_ends(direction, bound):
    scale = LogitScale()
    step(scale, direction, learning_rate=10)
    assert scale.temperature.item() == pytest.approx(bound)


@pytest.mark.parametrize(("direction", "bound"), [(1, 0.5), (-1, 0.001)])
def test_temperature_comes_back_from_its_bound(direction, bound):
    scale = LogitScale()
    step(scale, direction, learning_rate=10)
    step(scale, -direction, learning_rate=0.0005)
    assert scale.temperature.item() == pytest.approx(bound - direction * 0.0005)


@pytest.mark.parametrize("start", [0.001, 0.5])
def test_the_gradient_at_a_bound_is_alive(start):
    scale = LogitScale(start)
    scale(torch.tensor(0.3)).backward()
    assert scale.temperature.grad.item() == pytest.approx(-0.3 / start**2)


@pytest.mark.parametrize(
    "arguments", [{"temperature": 0.6}, {"temperature": 0.0001}, {"minimum": 0.0}, {"minimum": -1.0}]
)
def test_a_temperature_outside_its_bounds_is_refused(arguments):
    with pytest.raises(ValueError, match="must lie in"):
        LogitScale(**arguments)


@pytest.mark.parametrize("temperature", [float("nan"), float("inf")])
def test_a_temperature_that_is_no_number_is_refused(temperature):
    with pytest.raises(ValueError, match="must lie in"):
        LogitScale(temperature)


@settings(max_examples=25, deadline=None)
@given(maximum=st.floats(0.08, 5), minimum=st.floats(1e-5, 0.06), direction=st.sampled_from([1, -1]))
def test_a_temperature_at_any_bound_survives_saving(tmp_path_factory, maximum, minimum, direction):
    folder = str(tmp_path_factory.mktemp("scale"))
    scale = LogitScale(0.07, minimum, maximum)
    step(scale, direction, learning_rate=100)
    scale.save(folder)
    loaded = LogitScale.load(folder)
    assert loaded.temperature.item() == scale.temperature.item()
    assert (loaded.minimum, loaded.maximum) == (minimum, maximum)


def test_a_bound_that_no_float32_holds_survives_saving(tmp_path):
    scale = LogitScale(0.3, 0.1, 0.3)
    scale.save(str(tmp_path))
    assert LogitScale.load(str(tmp_path)).temperature.item() == scale.temperature.item()


def test_a_loaded_temperature_still_learns(tmp_path):
    LogitScale().save(str(tmp_path))
    loaded = LogitScale.load(str(tmp_path))
    step(loaded, 1, learning_rate=0.01)
    assert loaded.temperature.item() == pytest.approx(0.08)


def test_without_a_bias_there_is_no_parameter_for_it():
    assert LogitScale().bias is None
    assert list(LogitScale().state_dict()) == ["temperature"]


def test_a_bias_is_added_to_the_logits():
    similarity = torch.tensor([[1.0, -0.5], [0.0, 0.2]])
    torch.testing.assert_close(LogitScale(0.1, bias=-10.0)(similarity), similarity * 10 - 10)


def test_a_bias_learns():
    scale = LogitScale(bias=-10.0)
    scale(torch.zeros(3)).sum().backward()
    assert scale.bias.grad.item() == 3


def test_a_bias_can_be_added_later():
    scale = LogitScale()
    scale.add_bias_()
    assert scale.bias.item() == -10
    assert [name for name, parameter in scale.named_parameters() if parameter.requires_grad] == ["temperature", "bias"]


def test_adding_a_bias_keeps_the_one_there_is():
    scale = LogitScale(bias=-3.0)
    bias = scale.bias
    scale.add_bias_(-10.0)
    assert scale.bias is bias
    assert bias.item() == -3


@pytest.mark.parametrize("bias", [float("nan"), float("inf")])
def test_a_bias_that_is_no_number_is_refused(bias):
    with pytest.raises(ValueError, match="finite"):
        LogitScale(bias=bias)


@pytest.mark.parametrize("bias", [None, -10.0, 0.0, 0.1])
def test_a_bias_survives_saving(tmp_path, bias):
    scale = LogitScale(bias=bias)
    scale.save(str(tmp_path))
    loaded = LogitScale.load(str(tmp_path))
    assert loaded.get_config_dict() == scale.get_config_dict()
    assert loaded.state_dict() == scale.state_dict()


def test_a_scale_saved_before_there_were_biases_loads(tmp_path):
    LogitScale(0.2).save(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["bias"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = LogitScale.load(str(tmp_path))
    assert (loaded.temperature.item(), loaded.bias) == (pytest.approx(0.2), None)
