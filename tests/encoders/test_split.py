from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from freezealign import FrozenEncoder
from freezealign.encoders.registry import resolve
from freezealign.encoders.split import SPLIT_PACKAGES, SplitPackage, is_packaged

FILES = {"config.json": b"{}", "1_Pooling/config.json": b'{"mean": true}', "model.safetensors": bytes(range(256)) * 9}
OTHERS = {"tiny/model.bin": b"a pickle", "tiny/evil.py": b"run me", "../escaped.json": b"{}", "/absolute.json": b"{}"}
DISTRIBUTIONS = [f"tiny-part-{number:03}" for number in range(1, 4)]
MPNET = SPLIT_PACKAGES["all-mpnet-base-v2"]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def install(site: Path, distribution: str, part: str, content: bytes) -> Path:
    """Write a distribution as pip would, its folder no importable name."""
    info = site / f"{distribution.replace('-', '_')}-0.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.0.1\n")
    (info / "RECORD").write_text(f"{distribution}/input/{part},,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    path = site / distribution / "input" / part
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The user's cache, here."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub, "cached_assets_path", lambda *names: folder)
    return folder


@pytest.fixture
def parts(tmp_path, monkeypatch) -> list[Path]:
    """The parts of a zip in three installed distributions."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**{f"tiny/{name}": content for name, content in FILES.items()}, **OTHERS}.items():
            archive.writestr(name, content)
    content, site = stream.getvalue(), tmp_path / "site"
    third = len(content) // 3
    pieces = [content[:third], content[third : 2 * third], content[2 * third :]]
    monkeypatch.syspath_prepend(str(site))
    return [
        install(site, distribution, f"tiny.zip.{number:03}", piece)
        for number, (distribution, piece) in enumerate(zip(DISTRIBUTIONS, pieces), 1)
    ]


@pytest.fixture
def package(parts) -> SplitPackage:
    digests = {distribution: sha256(path.read_bytes()) for distribution, path in zip(DISTRIBUTIONS, parts)}
    return SplitPackage("tiny", "tiny", digests, {name: sha256(content) for name, content in FILES.items()})


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


# Assembling


def test_the_parts_are_joined_and_only_the_known_files_unpacked(package, cache):
    folder = package.folder()
    assert folder == cache / "tiny" and files_of(folder) == FILES


def test_nothing_is_left_or_written_elsewhere(package, cache, tmp_path):
    package.folder()
    assert {path.name for path in cache.iterdir()} <= {"tiny", "tiny.lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "site"}


def test_it_is_unpacked_once(package, parts):
    folder = package.folder()
    for path in parts:
        path.write_bytes(b"changed since")
    assert package.folder() == folder and files_of(folder) == FILES


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"damaged"), Path.unlink], ids=["changed", "missing"])
def test_a_damaged_cache_is_unpacked_again(damage, package):
    folder = package.folder()
    damage(folder / "model.safetensors")
    assert files_of(package.folder()) == FILES


def test_a_tampered_part_is_refused_with_its_remedy_and_nothing_is_unpacked(package, parts, cache):
    parts[1].write_bytes(b"something else")
    with pytest.raises(ValueError, match="pip install --force-reinstall tiny-part-002") as caught:
        package.folder()
    assert sha256(b"something else") in str(caught.value) and not (cache / "tiny").exists()


def test_a_missing_part_is_refused_with_its_remedy(package, parts):
    parts[2].unlink()
    with pytest.raises(ValueError, match=r"tiny\.zip\.003.*missing.*--force-reinstall tiny-part-003"):
        package.folder()


def test_a_file_that_is_not_the_released_one_is_refused(package, cache):
    other = SplitPackage("tiny", "tiny", package.parts, {**package.files, "config.json": sha256(b"another")})
    with pytest.raises(ValueError, match=r"config\.json: SHA-256"):
        other.folder()
    assert not (cache / "tiny").exists()


def test_a_missing_distribution_is_answered_with_the_pip_command(package):
    other = SplitPackage("tiny", "tiny", {**package.parts, "no-such-part-004": "0"}, package.files)
    assert package.is_installed() and not other.is_installed()
    with pytest.raises(ModuleNotFoundError, match=r"no-such-part-004.*pip install 'freezealign\[tiny\]'"):
        other.folder()


def test_several_at_once_unpack_once(package, monkeypatch):
    unpacked: list[Path] = []
    unpack = SplitPackage._unpack
    monkeypatch.setattr(SplitPackage, "_unpack", lambda self, folder: (unpacked.append(folder), unpack(self, folder)))
    threads = [threading.Thread(target=package.folder) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(unpacked) == 1 and files_of(package.folder()) == FILES


# Which source serves a name


@pytest.fixture
def missing(monkeypatch) -> SplitPackage:
    """all-mpnet-base-v2 as if none of its parts were installed."""
    package = SplitPackage("all-mpnet-base-v2", "mpnet", {"no-such-part-001": "0"}, {"config.json": "0"})
    monkeypatch.setitem(SPLIT_PACKAGES, "all-mpnet-base-v2", package)
    return package


def test_without_the_parts_the_name_stands_for_the_hub_id(missing):
    with pytest.raises(ConnectionError, match="'sentence-transformers/all-mpnet-base-v2'") as caught:
        FrozenEncoder("all-mpnet-base-v2")
    assert "pip install 'freezealign[mpnet]'" in str(caught.value)
    assert not is_packaged("all-mpnet-base-v2")


def test_with_the_parts_they_are_used(sbert_folder, missing, monkeypatch):
    monkeypatch.setattr(SplitPackage, "is_installed", lambda self: True)
    monkeypatch.setattr(SplitPackage, "folder", lambda self: Path(sbert_folder))
    encoder = FrozenEncoder("all-mpnet-base-v2")
    assert encoder.fingerprint == FrozenEncoder(sbert_folder).fingerprint
    assert encoder.reference.package == "all-mpnet-base-v2" and encoder.reference.revision is None


def test_a_revision_comes_from_the_hub_even_with_the_parts(missing, monkeypatch):
    monkeypatch.setattr(SplitPackage, "is_installed", lambda self: True)
    assert resolve("all-mpnet-base-v2", revision="v1").package is None
    with pytest.raises(ConnectionError):
        FrozenEncoder("all-mpnet-base-v2", revision="v1")


# The real packages


@pytest.mark.slow
@pytest.mark.skipif(not MPNET.is_installed(), reason="the distributions of all-mpnet-base-v2 are missing")
def test_all_mpnet_base_v2_embeds_as_sentence_transformers_does():
    from sentence_transformers import SentenceTransformer

    texts = ["A kitten is sleeping.", "A young cat takes a nap.", "Share prices fell sharply.", "word " * 30]
    encoder = FrozenEncoder("all-mpnet-base-v2")
    vectors = encoder(encoder.preprocess(texts))["sentence_embedding"].numpy()
    expected = SentenceTransformer(str(MPNET.folder()), device="cpu").encode(texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > similarity[0, 2] + 0.3
    assert (encoder.get_embedding_dimension(), encoder.max_seq_length) == (768, 384)
    assert len(encoder.encoder.forward_layers(encoder.preprocess(texts))) == 12
