"""Store folders that are damaged, full, foreign or hostile: each is refused, and the remedy that is named works."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from damage import damages, faults, not_files
from jobs import ended, extract, files_of, make_model, make_pairs, start

from freezealign import FeatureStore


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A good store; no test changes it."""
    path = tmp_path_factory.mktemp("whole") / "store"
    extract(path)
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    """A good store that a test may damage."""
    extract(tmp_path / "store")
    return tmp_path / "store"


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    changed = change(content)
    file.write_text(json.dumps(content if changed is None else changed))


# Damaged arrays


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "flipped bit": flip,
    "missing": Path.unlink,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file: file.write_bytes(b""),
}


def test_good_store_is_verified(whole):
    assert len(FeatureStore.open(whole, verify=True)) == 55


def test_flipped_bit_is_found_by_reading_everything_only(path):
    flip(path / "image" / "token_embeddings" / "00003.npy")
    assert len(FeatureStore.open(path)) == 55
    with pytest.raises(ValueError, match=r"00003\.npy is damaged: its SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}"):
        FeatureStore.open(path, verify=True)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", ["image/token_embeddings", "text/captions.utf8", "items/image"])
def test_remedy_for_a_damaged_file_repairs_the_store(whole, path, kind, name):
    DAMAGES[kind](path / name / "00003.npy")
    with pytest.raises(ValueError, match=r"Delete .* and run the extraction again") as error:
        FeatureStore.open(path, verify=True)
    assert f"{name}/00003.npy" in str(error.value)
    Path(str(error.value).split("Delete ")[1].split(" and run")[0]).unlink()
    extract(path)
    assert files_of(path) == files_of(whole)


def test_remedy_for_a_damaged_file_of_a_saved_store_is_another(whole, tmp_path):
    FeatureStore.open(whole).save(tmp_path / "copy")
    flip(tmp_path / "copy" / "image" / "token_embeddings" / "00000.npy")
    with pytest.raises(ValueError, match="save it again"):
        FeatureStore.open(tmp_path / "copy", verify=True)


def test_pickled_objects_are_never_loaded(path, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    file, shard = path / "text" / "lengths" / "00000.npy", path / "shards" / "00000.json"
    np.save(file, np.array([Bomb()] * 7, dtype=object), allow_pickle=True)
    size = file.stat().st_size
    edit(shard, lambda content: content["files"]["text/lengths"].update(bytes=size))
    with pytest.raises(ValueError, match=r"text/lengths/00000\.npy cannot be read.*extract the features again"):
        FeatureStore.open(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"no array, but as long as one may be", b"PK\x03\x04" + b"0" * 100])
def test_file_of_another_kind_is_refused(path, content):
    file = path / "text" / "lengths" / "00000.npy"
    file.write_bytes(content)
    edit(path / "shards" / "00000.json", lambda c: c["files"]["text/lengths"].update(bytes=len(content)))
    with pytest.raises(ValueError, match=r"text/lengths/00000\.npy cannot be read"):
        FeatureStore.open(path)


def test_zip_of_arrays_in_place_of_an_array_is_refused(path):
    file = path / "text" / "lengths" / "00000.npy"
    with file.open("wb") as opened:
        np.savez(opened, lengths=np.ones(7, np.int32))
    size = file.stat().st_size
    edit(path / "shards" / "00000.json", lambda c: c["files"]["text/lengths"].update(bytes=size))
    with pytest.raises(ValueError, match=r"text/lengths/00000\.npy cannot be read"):
        FeatureStore.open(path)


# Damaged JSON


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"null", b"\xff\xfe", b'{"files": {}}'])
def test_damaged_shard_file_is_named(path, content):
    (path / "shards" / "00004.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"00004\.json"):
        FeatureStore.open(path)


SHARD_CHANGES = {
    "files are a list": lambda content: content.update(files=[]),
    "no entry": lambda content: content["files"].update({"image/lengths": None}),
    "no size": lambda content: content["files"]["image/lengths"].pop("bytes"),
    "no column": lambda content: content["files"].pop("image/lengths"),
    "skipped without a reason": lambda content: content.update(skipped=[{"index": 3}]),
    "skipped is a number": lambda content: content.update(skipped=3),
}


@pytest.mark.parametrize("change", SHARD_CHANGES)
def test_shard_file_of_another_form_is_refused(path, change):
    edit(path / "shards" / "00004.json", SHARD_CHANGES[change])
    with pytest.raises(ValueError, match=r"store.*(damaged|missing)"):
        FeatureStore.open(path)


MANIFEST_CHANGES = {
    "modalities are a list": lambda content: content.update(modalities=["image"]),
    "no encoder": lambda content: content["modalities"].update(image={}),
    "an encoder too many": lambda content: content["modalities"].update(audio=content["modalities"]["image"]),
    "no modalities": lambda content: content.update(modalities={}),
    "no number of shards": lambda content: content.pop("shards"),
    "version is no number": lambda content: content.update(format_version="two"),
}


@pytest.mark.parametrize("change", MANIFEST_CHANGES)
def test_manifest_of_another_form_is_refused(path, change):
    edit(path / "manifest.json", MANIFEST_CHANGES[change])
    with pytest.raises(ValueError, match=r"store"):
        FeatureStore.open(path)


def test_earlier_version_is_refused_with_the_remedy(path):
    edit(path / "manifest.json", lambda content: {"format_version": 1, "modalities": {}})
    with pytest.raises(ValueError, match=r"earlier freezealign; extract the features again"):
        FeatureStore.open(path)


def test_later_version_is_refused_with_the_remedy(path):
    edit(path / "manifest.json", lambda content: content.update(format_version=content["format_version"] + 1))
    with pytest.raises(ValueError, match=r"later freezealign; upgrade: pip install -U freezealign"):
        FeatureStore.open(path)


def test_extraction_into_a_later_version_changes_nothing(path):
    edit(path / "manifest.json", lambda content: content.update(format_version=99))
    before = files_of(path)
    with pytest.raises(ValueError, match="later freezealign"):
        extract(path)
    assert files_of(path) == before


# Disks


def extract_limited(path: Path, limit: int, told: Path) -> None:
    """Extract in a process whose files may not exceed ``limit`` bytes: Python ignores SIGXFSZ, so that writes fail."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        extract(path)
    except OSError as error:
        told.write_text(f"{error.errno} {error}")


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_full_disk_keeps_finished_shards_and_a_run_with_space_completes(whole, tmp_path, share):
    path, told = tmp_path / "store", tmp_path / "told"
    limit = int(share * max(file.stat().st_size for file in whole.rglob("*.npy")))
    assert ended(start(extract_limited, path, limit, told)) == 0
    message = told.read_text()
    assert f"cannot write to {path}" in message
    assert "Finished shards are kept" in message
    assert "free some space and run it again" in message
    assert "None" not in message
    partial = FeatureStore.open(path, partial=True, verify=True)
    assert partial.ids == FeatureStore.open(whole).ids[: len(partial)]
    assert len(partial) > 5
    assert not [name for name in files_of(path) if ".tmp" in name or ".lock" in name]
    extract(path)
    assert files_of(path) == files_of(whole)


@pytest.mark.parametrize("where", ["/proc/store", "/proc/some/store", "/sys/store"])
def test_folder_that_cannot_be_made_is_an_error_with_the_remedy(where):
    with pytest.raises(OSError, match=rf"cannot write to {where}: .*choose a folder that can be written"):
        extract(Path(where))


def test_folder_that_cannot_be_written_is_an_error_with_the_remedy(tmp_path, monkeypatch):
    def read_only(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", read_only)
    with pytest.raises(OSError, match=r"cannot write to .*Permission denied.*choose a folder that can be written"):
        extract(tmp_path)


def test_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "store").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file; choose another folder"):
        extract(tmp_path / "store")
    with pytest.raises(OSError, match=r"cannot write to .*choose a folder that can be written"):
        extract(tmp_path / "store" / "below")
    assert (tmp_path / "store").read_text() == "mine"


# Every value odd in turn


@pytest.mark.parametrize("file", ["manifest.json", "shards/00000.json"])
@pytest.mark.parametrize("kind", ["extracted", "saved"])
def test_a_store_with_an_odd_value_is_refused_or_the_same(tmp_path, file, kind):
    path, model = tmp_path / "store", make_model()
    extract(path, make_pairs(11), shard_size=20)
    if kind == "saved":
        FeatureStore.open(path).save(tmp_path / "copy")
        path = tmp_path / "copy"
    good = FeatureStore.open(path)

    def load() -> None:
        store = FeatureStore.open(path, verify=True)
        store.check(model.origins("tokens"))
        assert (store.ids, store.level, list(store.features)) == (good.ids, good.level, list(good.features))
        for modality, features in store.features.items():
            assert list(features.columns) == list(good[modality].columns)
            batch, expected = features.load([3, 0]), good[modality].load([3, 0])
            assert all(np.array_equal(batch[key], expected[key]) for key in expected)

    # a fingerprint, a preprocessing and a pooling of their right type are compared with the model's
    assert not (wrong := faults(damages(path / file), load, "")), "\n".join(wrong)


@pytest.mark.parametrize("file", ["manifest.json", "shards/00000.json", "image/lengths/00000.npy"])
def test_what_is_no_file_is_refused_by_its_name(path, file):
    def load() -> None:
        FeatureStore.open(path)
        raise AssertionError("opened")

    assert not (wrong := faults(not_files(path / file), load, Path(file).name)), "\n".join(wrong)


@pytest.mark.parametrize("file", ["manifest.json", "shards/00000.json", "image/lengths/00000.npy"])
def test_a_link_out_of_the_folder_is_refused(path, tmp_path, file):
    (path / file).rename(tmp_path / "elsewhere")
    (path / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="points outside"):
        FeatureStore.open(path)


def test_each_json_file_is_parsed_once(path, monkeypatch):
    from freezealign import files

    read = []
    parse = files.read_json
    monkeypatch.setattr(files, "read_json", lambda path: read.append(path) or parse(path))
    FeatureStore.open(path, verify=True)
    assert len(read) == len(set(read)) == 1 + 9


def test_a_later_store_may_say_more(path):
    edit(path / "manifest.json", lambda content: content.update(note="mine"))
    edit(path / "shards" / "00000.json", lambda content: content.update(note="mine"))
    assert len(FeatureStore.open(path)) == 55


@pytest.mark.parametrize("order", ["F", "scalar"])
def test_array_whose_rows_do_not_follow_each_other_is_refused(path, order):
    file = path / "image" / "token_embeddings" / "00000.npy"
    rows = np.load(file)
    np.save(file, np.asfortranarray(rows) if order == "F" else np.float32(1))
    edit(
        path / "shards" / "00000.json",
        lambda c: c["files"]["image/token_embeddings"].update(bytes=file.stat().st_size),
    )
    with pytest.raises(ValueError, match=r"00000\.npy (is stored column by column|holds one value)"):
        FeatureStore.open(path)


def test_a_column_that_one_shard_lacks_altogether_is_refused(path):
    edit(path / "shards" / "00004.json", lambda content: content["files"].pop("image/lengths") and None)
    (path / "image" / "lengths" / "00004.npy").unlink()
    with pytest.raises(ValueError, match="equal columns"):
        FeatureStore.open(path)


@pytest.mark.parametrize("change", [lambda rows: rows.astype(np.float64), lambda rows: rows[:, :-1]])
def test_a_column_that_changes_its_form_is_refused(path, change):
    file = path / "image" / "token_embeddings" / "00004.npy"
    np.save(file, np.ascontiguousarray(change(np.load(file))))
    size = file.stat().st_size
    edit(path / "shards" / "00004.json", lambda c: c["files"]["image/token_embeddings"].update(bytes=size))
    with pytest.raises(ValueError, match="equal columns"):
        FeatureStore.open(path)
