"""Curation from a pool to a documented subset, in Python and on the command line; the same after an interruption."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from made import make_prototypes, make_store, make_vectors, write_arrays, write_shards, write_tables
from PIL import Image
from typer.testing import CliRunner

from freezealign import FeatureStore, FreezeAlign
from freezealign.cli import app
from freezealign.curation import CaptionLength, NearDuplicates, Prototypes, curate, find_shards, open_pool, write_subset
from freezealign.curation import card as card_module
from freezealign.curation import pipeline as module
from freezealign.curation.subset import keys_of

QUIET = {"show_progress_bar": False}


def read_table(folder: Path) -> dict[str, list]:
    from pyarrow import parquet

    return parquet.read_table(folder / "selection.parquet").to_pydict()


def files_of(folder: Path) -> dict[str, bytes]:
    """What a curation leaves; figures may hold the time they were made at."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".png"
    }


@pytest.fixture
def no_figures(monkeypatch):
    """Leave out what takes most of a small curation's time."""
    for name in ("_draw_coverage", "_draw_scores"):
        monkeypatch.setattr(card_module, name, lambda *_: None)


@pytest.fixture
def pool(tmp_path):
    make_store(make_vectors(200)).save(tmp_path / "store")
    return open_pool(tmp_path / "store")


def test_selection_is_written_in_every_form(pool, tmp_path):
    found = curate(pool, make_prototypes(4), tmp_path / "out", per_concept=10, filters=[CaptionLength()], **QUIET)
    assert found.selection.counts(4).tolist() == [10, 10, 10, 10]
    table = read_table(tmp_path / "out")
    assert table["id"] == found.ids == (tmp_path / "out" / "ids.txt").read_text().splitlines()
    assert table["id"] == [f"pair-{row}" for row in table["row"]]
    assert table["caption"] == [f"caption {row}" for row in table["row"]]
    assert table["concept"] == [f"concept {number}" for number in found.selection.concepts]
    np.testing.assert_array_equal(np.array(table["score"], np.float32), found.selection.scores)
    store = FeatureStore.open(tmp_path / "out" / "features")
    assert sorted(store.ids) == sorted(found.ids)
    for name in ("card.md", "coverage.png", "scores.png"):
        assert (tmp_path / "out" / name).stat().st_size


@pytest.mark.usefixtures("no_figures")
def test_card_says_what_was_done(tmp_path):
    pool = open_pool(write_tables(tmp_path / "pool", make_vectors()))
    filters = [NearDuplicates(pool, 0.9)]
    found = curate(pool, make_prototypes(), tmp_path / "out", per_concept=12, candidates=15, filters=filters, **QUIET)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["pool"]["rows"], card["selected"], card["concepts"]) == (40, len(found.selection), 3)
    assert [entry["filter"] for entry in card["filters"]] == ["equal ids", "near-duplicates"]
    removed = sum(entry["removed"] for entry in card["filters"])
    assert card["filters"][0]["candidates"] - removed >= card["selected"]
    assert sum(card["coverage"]["before"].values()) == card["coverage"]["sample"] == 40
    assert sum(card["coverage"]["after"].values()) == card["selected"]
    assert set(card["short"]) == {name for name, count in card["coverage"]["after"].items() if count < 12}
    licences = read_table(tmp_path / "out")["licence"]
    assert card["licences"] == {"CC0": licences.count("CC0"), "not stated": licences.count(None)}
    text = (tmp_path / "out" / "card.md").read_text()
    assert f"**{card['selected']} of 40 pairs**" in text
    assert "| CC0 |" in text


@pytest.mark.usefixtures("no_figures")
def test_balanced_selection_covers_concepts_more_evenly(tmp_path):
    """Nine tenths of the pool belong to one of four concepts."""
    prototypes = Prototypes.from_vectors(np.eye(4, 8), list("abcd"))
    owners = np.array([0] * 360 + [1] * 14 + [2] * 13 + [3] * 13)
    vectors = 5 * np.eye(4, 8, dtype=np.float32)[owners] + make_vectors(400, width=8)
    found = curate(open_pool(make_store(vectors)), prototypes, tmp_path, per_concept=12, **QUIET)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["coverage"]["effective_before"] < 2
    assert card["coverage"]["effective_after"] == pytest.approx(4)
    assert (owners[found.selection.rows] == found.selection.concepts).mean() > 0.9


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"per_concept": 11}, "per_concept"),
        ({"filters": [CaptionLength()]}, "filters"),
        ({"candidates": 41}, "k"),
        ({"seed": 1}, "seed"),
    ],
)
def test_another_curation_in_the_same_folder_is_refused_and_changes_nothing(change, names, pool, tmp_path):
    options = {"per_concept": 10, "candidates": 40, **QUIET}
    curate(pool, make_prototypes(), tmp_path / "out", **options)
    before = files_of(tmp_path / "out")
    with pytest.raises(ValueError, match=rf"the curation in .* was begun with {names} = "):
        curate(pool, make_prototypes(), tmp_path / "out", **{**options, **change})
    assert files_of(tmp_path / "out") == before


@pytest.mark.usefixtures("no_figures")
def test_curations_with_other_filters_share_the_pass(pool, tmp_path, monkeypatch):
    options = {"per_concept": 10, "candidates": 40, "scores": tmp_path / "scores", **QUIET}
    curate(pool, make_prototypes(), tmp_path / "first", **options)
    monkeypatch.setattr("freezealign.curation.engines.score_range", lambda *_: pytest.fail("the pool was scored again"))
    found = curate(pool, make_prototypes(), tmp_path / "second", filters=[NearDuplicates(pool, 0.9)], **options)
    assert len(found.filters) == 2


@pytest.mark.usefixtures("no_figures")
def test_folder_of_something_else_is_left_alone(pool, tmp_path):
    with pytest.raises(FileExistsError, match="holds 'store' and no curation"):
        curate(pool, make_prototypes(), tmp_path, per_concept=10, **QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


@pytest.mark.usefixtures("no_figures")
def test_pool_that_changed_is_another_curation(tmp_path):
    folder = write_arrays(tmp_path / "pool", make_vectors())
    curate(open_pool(folder), make_prototypes(), tmp_path / "out", per_concept=5, **QUIET)
    write_arrays(folder, make_vectors(), caption=["another caption"] * 40)
    with pytest.raises(ValueError, match="was begun with pools = "):
        curate(open_pool(folder), make_prototypes(), tmp_path / "out", per_concept=5, **QUIET)


@pytest.mark.parametrize(("per_concept", "candidates"), [(0, None), (5, 4), (5, 0)])
def test_quota_beyond_the_candidates_is_refused(per_concept, candidates, pool, tmp_path):
    with pytest.raises(ValueError, match="a concept takes 1 pair or more of its candidates"):
        curate(pool, make_prototypes(), tmp_path / "out", per_concept=per_concept, candidates=candidates, **QUIET)


def test_what_a_filter_needs_is_known_before_the_pass(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", make_vectors())
    monkeypatch.setattr(module, "score_pool", lambda *_, **__: pytest.fail("the pool was scored"))
    with pytest.raises(ValueError, match="does not tell the caption"):
        curate(open_pool(tmp_path), make_prototypes(), tmp_path / "out", filters=[CaptionLength()], **QUIET)


def test_pictures_of_another_pool_are_an_error(pool, tmp_path):
    with pytest.raises(ValueError, match=r"none of the .* pictures of the sheet"):
        curate(pool, make_prototypes(), tmp_path / "out", pictures=[{"id": "x", "image": b"", "text": "a"}], **QUIET)


def test_nothing_left_is_an_error(pool, tmp_path):
    with pytest.raises(ValueError, match=r"no pair is left after the filters.*caption length"):
        curate(pool, make_prototypes(), tmp_path / "out", filters=[CaptionLength(9)], **QUIET)


def test_samples_are_copied_as_they_are(tmp_path):
    shards = write_shards(tmp_path / "shards")
    assert write_subset(find_shards(shards), ["pair-1", "pair-2", "pair-11"], tmp_path / "subset", **QUIET) == {}
    copies = sorted((tmp_path / "subset").glob("*.tar"))
    assert [keys_of(shard) for shard in copies] == [["pair-1", "pair-2"], [], ["pair-11"]]
    for shard in copies:
        with tarfile.open(shard) as copy, tarfile.open(shards / shard.name) as original:
            for name in copy.getnames():
                assert copy.extractfile(name).read() == original.extractfile(name).read()


def test_shards_that_are_there_are_not_written_again(tmp_path):
    shards, folder = find_shards(write_shards(tmp_path / "shards")), tmp_path / "subset"
    write_subset(shards, ["pair-1", "pair-11"], folder, **QUIET)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "00002.tar").unlink()
    write_subset(shards, ["pair-1", "pair-11"], folder, **QUIET)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"00002.tar"}
    assert keys_of(folder / "00002.tar") == ["pair-11"]


def test_sample_that_is_in_no_shard_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"1 of 2 selected samples .* 'pair-99'"):
        write_subset(
            find_shards(write_shards(tmp_path / "shards")), ["pair-1", "pair-99"], tmp_path / "subset", **QUIET
        )


def test_subset_of_other_samples_is_refused(tmp_path):
    """What a second run leaves out, a test image perhaps, must not stay from the first."""
    shards = find_shards(write_shards(tmp_path / "shards"))
    write_subset(shards, ["pair-1", "pair-11"], tmp_path / "subset", **QUIET)
    with pytest.raises(ValueError, match=r"the subset in .* was begun with ids = "):
        write_subset(shards, ["pair-1"], tmp_path / "subset", **QUIET)
    with pytest.raises(FileExistsError, match=r"holds '.*\.tar' and no subset"):
        write_subset(shards, ["pair-1"], tmp_path / "shards", **QUIET)


def test_cut_sample_is_left_out_and_told(tmp_path):
    shards = find_shards(write_shards(tmp_path / "shards"))
    shards[1].write_bytes(shards[1].read_bytes()[:-11_000])
    for _ in range(2):
        damage = write_subset(shards, ["pair-1", "pair-4", "pair-7", "pair-11"], tmp_path / "subset", **QUIET)
        assert list(damage) == ["00001.tar"]
        assert "may be incomplete and is left out" in damage["00001.tar"][-1]
    kept = [key for shard in shards for key in keys_of(tmp_path / "subset" / shard.name)]
    assert kept == ["pair-1", "pair-4", "pair-11"]


def test_sample_in_two_shards_is_an_error(tmp_path):
    shards = find_shards(write_shards(tmp_path / "shards"))
    shards[2].write_bytes(shards[0].read_bytes())
    with pytest.raises(ValueError, match="are in more than one shard"):
        write_subset(shards, ["pair-1"], tmp_path / "subset", **QUIET)


def run(*arguments) -> str:
    result = CliRunner().invoke(app, ["curate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_command_curates_shards_that_were_extracted(dinov2_folder, bert_folder, tmp_path):
    """The whole way: shards, features, pictures of two concepts, a test set, a subset of the shards, a sheet."""
    shards = write_shards(tmp_path / "shards")
    model = FreezeAlign({"image": dinov2_folder, "text": bert_folder}, recipe="pooled", dim=8, device="cpu")
    model.extract_features(str(shards), tmp_path / "pool", level="pooled", **QUIET)
    test = [{"image": Image.new("RGB", (8, 8), (60, 0, 0)), "text": "a"}]
    model.extract_features(test, tmp_path / "test", level="pooled", **QUIET)
    for name, red in (("dark", 0), ("light", 220)):
        (tmp_path / "concepts" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (red, 0, 0)).save(tmp_path / "concepts" / name / "a.png")
    out = tmp_path / "out"
    output = run(
        tmp_path / "pool", "--concepts", tmp_path / "concepts", "--output", out, "--per-concept", 2, "--candidates", 12,
        "--min-words", 1, "--exclude", tmp_path / "test", "--exclude-threshold", 0.999999, "--pictures", shards,
        "--shards", shards, "--mix-with", tmp_path / "pool", "--temperature", 1e9,
    )  # fmt: skip
    table = read_table(out)
    assert sorted(table["concept"]) == ["dark", "dark", "light", "light"]
    assert {table["id"][i] for i in range(4) if table["concept"][i] == "light"} <= {"pair-11", "pair-10", "pair-9"}
    assert "pair-3" not in table["id"]
    card = json.loads((out / "card.json").read_text())
    assert [(f["filter"], f["removed"] > 0) for f in card["filters"]][-1] == ("near-duplicates of test items", True)
    assert sorted(key for shard in (out / "subset").glob("*.tar") for key in keys_of(shard)) == sorted(table["id"])
    assert (out / "sheet.jpg").stat().st_size
    weights = json.loads((out / "weights.json").read_text())
    assert weights == {str(out / "features"): 1, str(tmp_path / "pool"): pytest.approx(1 / 3)}
    assert "--weight 1  for" in output
    assert "--weight 0.3333  for" in output
    assert "4 of 12 pairs" in output


@pytest.mark.usefixtures("no_figures")
def test_command_reads_names_and_saved_prototypes(dinov2_folder, bert_folder, tmp_path):
    model = FreezeAlign({"image": dinov2_folder, "text": bert_folder}, recipe="pooled", dim=8, device="cpu")
    data = [{"image": Image.new("RGB", (8, 8)), "text": f"a {word} {i}"} for word in ("car", "dog") for i in range(9)]
    model.extract_features(data, tmp_path / "pool", level="pooled", **QUIET)
    (tmp_path / "names.txt").write_text("car\ndog\n\n")
    options = ["--modality", "text", "--per-concept", 3]
    run(
        tmp_path / "pool",
        "--concepts",
        tmp_path / "names.txt",
        "--output",
        tmp_path / "a",
        *options,
        "--template",
        "a {}",
    )
    prototypes = Prototypes.from_texts(model, ["car", "dog"], ["a {}"], **QUIET)
    prototypes.save(tmp_path / "p.safetensors")
    run(tmp_path / "pool", "--concepts", tmp_path / "p.safetensors", "--output", tmp_path / "b", *options)
    assert read_table(tmp_path / "a") == read_table(tmp_path / "b")
    assert len(read_table(tmp_path / "a")["id"]) == 6


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ("nothing", "there are no concepts"),
        ("p.safetensors", "6 wide, the vectors of"),
        ("bad.safetensors", "holds no"),
    ],
)
def test_command_says_what_is_wrong(concepts, message, tmp_path):
    write_arrays(tmp_path / "pool", make_vectors(width=5))
    make_prototypes().save(tmp_path / "p.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"")
    result = CliRunner().invoke(
        app, ["curate", str(tmp_path / "pool"), "--concepts", str(tmp_path / concepts), "--output", str(tmp_path / "o")]
    )
    assert result.exit_code == 1
    assert message in result.output
