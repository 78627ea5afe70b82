"""Embeddings that somebody has already: arrays, files and tables as stores, and models on them, end to end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from freezealign import CKAEvaluator, FeatureStore, FreezeAlign, FrozenEncoder, RetrievalEvaluator
from freezealign.cli import app
from freezealign.features import open_embeddings
from freezealign.inputs import InputError

N, TRAIN = 240, 200
WIDTHS = {"image": 24, "text": 16}


def world(modality: str) -> np.ndarray:
    """Vectors of N items in one modality: a nonlinear view of six numbers that all modalities share."""
    hidden = np.random.default_rng(0).normal(size=(N, 6))
    seed = sorted({*WIDTHS, "voxels", "sensors"}).index(modality)
    return np.tanh(hidden @ np.random.default_rng(seed).normal(size=(6, WIDTHS.get(modality, 20))) / 2)


X, Y = world("image").astype(np.float32), world("text").astype(np.float32)
BAD = (3, 77)


def spoiled() -> np.ndarray:
    vectors = X.copy()
    vectors[BAD[0], 1], vectors[BAD[1], 5] = np.nan, -np.inf
    return vectors


def clip_retrieval(folder: Path, vectors: np.ndarray = X) -> Path:
    """What clip-retrieval writes: three parts, numbered so that names sort otherwise than numbers."""
    from pyarrow import parquet, table

    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, rows in zip((0, 2, 10), np.array_split(np.arange(N), 3)):
        np.save(folder / f"img_emb/img_emb_{number}.npy", vectors[rows].astype(np.float16))
        np.save(folder / f"text_emb/text_emb_{number}.npy", Y[rows].astype(np.float16))
        known = {
            "image_path": [f"{row}.jpg" for row in rows],
            "caption": [None if row == 1 else f"text {row}" for row in rows],
        }
        parquet.write_table(table(known), folder / f"metadata/metadata_{number}.parquet")
    return folder


def parquet_file(path: Path, vectors: np.ndarray = X) -> Path:
    from pyarrow import parquet, table

    columns = {"key": [f"{row}.jpg" for row in range(N)], "TEXT": [f"text {row}" for row in range(N)]}
    parquet.write_table(table({**columns, "image_embedding": list(vectors), "text_embedding": list(Y)}), path)
    return path


def files(folder: Path, vectors: np.ndarray = X) -> list[Path]:
    folder.mkdir()
    np.save(folder / "images.npy", vectors)
    np.save(folder / "texts.npy", Y)
    return [folder / "images.npy", folder / "texts.npy"]


FORMS = {
    "float32": lambda folder, vectors: FeatureStore.from_arrays({"image": vectors, "text": Y}),
    "float16 and float64": lambda folder, vectors: FeatureStore.from_arrays(
        {"image": vectors.astype(np.float16), "text": Y.astype(np.float64)}
    ),
    "torch": lambda folder, vectors: FeatureStore.from_arrays(
        {"image": torch.from_numpy(vectors), "text": torch.from_numpy(Y).bfloat16().requires_grad_()}
    ),
    "lists": lambda folder, vectors: FeatureStore.from_arrays({"image": vectors.tolist(), "text": list(Y)}),
    "mapped": lambda folder, vectors: FeatureStore.from_arrays(
        {"image": np.load(files(folder, vectors)[0], mmap_mode="r"), "text": str(folder / "texts.npy")}
    ),
    "files": lambda folder, vectors: open_embeddings(files(folder, vectors)),
    "a folder of files": lambda folder, vectors: open_embeddings(files(folder, vectors)[0].parent),
    "clip-retrieval": lambda folder, vectors: open_embeddings(clip_retrieval(folder, vectors)),
    "Parquet": lambda folder, vectors: open_embeddings(parquet_file(folder.with_suffix(".parquet"), vectors)),
    "a saved store": lambda folder, vectors: saved(FeatureStore.from_arrays({"image": vectors, "text": Y}), folder),
}
each_form = pytest.mark.parametrize("form", FORMS)


def saved(store: FeatureStore, folder: Path) -> FeatureStore:
    store.save(folder)
    return open_embeddings(folder)


def recall(model: FreezeAlign, images: np.ndarray = X, texts: np.ndarray = Y) -> dict:
    return RetrievalEvaluator(images[TRAIN:], texts[TRAIN:], show_progress_bar=False)(model)


def fitted(data, **options) -> FreezeAlign:
    model = FreezeAlign(WIDTHS, dim=8, seed=0, device="cpu")
    model.fit(data, show_progress_bar=False, **options)
    return model


# What a store holds


@each_form
def test_every_form_is_the_same_vectors(form, tmp_path):
    store = FORMS[form](tmp_path / "data", X)
    assert (len(store), store.level, store.skipped) == (N, "pooled", [])
    for modality, expected in (("image", X), ("text", Y)):
        found = store[modality].vectors()
        assert found.shape == expected.shape and torch.allclose(found.float(), torch.from_numpy(expected), atol=4e-3)
    assert store.ids[5] in ("5", "5.jpg")


@each_form
def test_rows_that_are_not_finite_are_left_out_and_listed(form, tmp_path):
    store = FORMS[form](tmp_path / "data", spoiled())
    assert len(store) + len(store.skipped) == N
    assert [entry.index for entry in store.skipped] == list(BAD)
    assert "image" in store.skipped[0].reason and "NaN" in store.skipped[0].reason
    kept = np.delete(np.arange(N), BAD)
    assert [int(re.match(r"\d+", name)[0]) for name in store.ids] == kept.tolist()
    assert torch.allclose(store["text"].vectors().float(), torch.from_numpy(Y[kept]), atol=4e-3)
    assert torch.isfinite(store["image"].vectors()).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_strict_raises_with_the_position(bad):
    vectors = X.astype(np.float64)
    vectors[[9, 40], 0] = bad
    with pytest.raises(InputError, match="item 9: the image vector"):
        FeatureStore.from_arrays({"text": Y, "image": vectors}, strict=True)
    assert len(FeatureStore.from_arrays({"text": Y, "image": vectors})) == N - 2


def test_null_and_odd_rows_of_parquet_are_left_out(tmp_path):
    rows = [None if row == 4 else X[row, :3].tolist() if row == 6 else X[row].tolist() for row in range(N)]
    store = open_embeddings(parquet_file(tmp_path / "a.parquet", rows))
    assert [entry.index for entry in store.skipped] == [4, 6] and len(store) == N - 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": X, "text": Y[:-3]}, r"image 240, text 237"),
        ({"voxels": X[:9], "sensors": Y}, r"voxels 9, sensors 240"),
        ({"image": (X * 100).astype(np.int8)}, r"int8.*astype\('float32'\) times the scale"),
        ({"image": torch.zeros(4, 3, dtype=torch.int64)}, r"int64.*astype\('float32'\)"),
        ({"image": X.astype(">f4")}, r"astype\('float32'\)"),
        ({"image": X.astype(complex)}, r"complex128.*astype\('float32'\)"),
        ({"image": np.array([{}] * 4)}, r"shape \(4,\)"),
        ({"image": X[0]}, r"shape \(24,\): vectors are \(n, D\)"),
        ({"image": [1.0, 2.0]}, r"item 0 have the shape \(\)"),
        ({"image": X[None, None]}, r"shape \(1, 1, 240, 24\)"),
        ({"image": X[:, :0]}, r"shape \(240, 0\)"),
        ({"image": [X[0], X[1], X[2, :5]]}, r"item 2 have the shape \(5,\).*first: \(24,\)"),
        ({"image": np.full((4, 3), np.nan)}, r"no item that can be used; item 0: the image vector"),
        ({"image": X[:0]}, "the arrays are empty"),
        ({}, "name the arrays"),
        (X, "name the arrays"),
        ({"image": "missing.npy"}, r"missing\.npy holds no vectors.*No such file"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(arrays, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        FeatureStore.from_arrays(arrays)


@pytest.mark.parametrize(
    "save", [lambda path: path.write_bytes(b"nothing"), lambda path: np.save(path, np.asfortranarray(X))]
)
def test_a_file_that_cannot_be_read_row_by_row_is_refused(save, tmp_path):
    save(tmp_path / "images.npy")
    with pytest.raises(ValueError, match=r"images\.npy holds no vectors.*ascontiguousarray"):
        FeatureStore.from_arrays({"image": tmp_path / "images.npy"})


@pytest.mark.parametrize(
    "form", [lambda many, path: many, lambda many, path: list(many), lambda many, path: np.save(path, many) or path]
)
def test_an_item_may_have_several_vectors(form, tmp_path):
    many = np.stack([Y, Y + 1, Y + 2], axis=1)
    captions = [[f"{row} {place}" for place in range(3)] for row in range(N)]
    store = FeatureStore.from_arrays({"image": X, "text": form(many, tmp_path / "many.npy")}, captions=captions)
    assert (store.counts("text") == 3).all() and len(store["text"]) == 3 * N
    assert store["text"].captions([4]) == ["1 1"] and torch.equal(
        store["text"].vectors()[4], torch.from_numpy(many[1, 1])
    )
    batch, owners = store.load(np.array([2, 7]), np.zeros(2), captions=3)
    assert owners["text"].tolist() == [0, 0, 0, 1, 1, 1] and batch["text"]["sentence_embedding"].shape == (6, 16)


def test_items_may_have_different_numbers_of_vectors_and_one_without_any_is_left_out():
    each = [np.repeat(Y[row : row + 1], row % 4, axis=0) for row in range(N)]
    store = FeatureStore.from_arrays({"image": X, "text": each})
    assert [entry.index for entry in store.skipped] == list(range(0, N, 4))
    assert store.skipped[0].reason == "there is no text." and store.counts("text").tolist() == [1, 2, 3] * (N // 4)
    batch, _ = store.load(np.array([0, 1]), np.zeros(2), captions=2)  # texts or no texts: the option is of vectors
    assert batch["text"]["sentence_embedding"].shape == (4, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": ["a"]}, "1 ids for 240 items"),
        ({"captions": ["a"]}, "captions of 1 items for 240"),
        ({"captions": [["a", "b"]] * N}, "item 0 has 1 text vectors"),
        ({"captions": [None] * N}, "item 0 has 1 text vectors"),
        ({"encoders": {"voxels": FrozenEncoder.precomputed(3, "voxels")}}, "names \\['voxels'\\]"),
        ({"encoders": {"image": FrozenEncoder.precomputed(3, "image")}}, "24 wide.* 3"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FeatureStore.from_arrays({"image": X, "text": Y}, **options)


def test_ids_and_captions_of_clip_retrieval_come_along(tmp_path):
    store = open_embeddings(clip_retrieval(tmp_path / "data"))
    assert store.ids[200] == "200.jpg" and store["text"].captions([0, 1, 200]) == ["text 0", "", "text 200"]


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda f: (f / "img_emb/img_emb_2.npy").unlink(),
            ValueError,
            r"go together by number; one side lacks \[\(2,\)\]",
        ),
        (lambda f: (f / "metadata/metadata_0.parquet").unlink(), ValueError, "go together by number"),
        (
            lambda f: np.save(f / "text_emb/text_emb_2.npy", Y[:5].astype(np.float16)),
            ValueError,
            "has 80 rows and .* has 5",
        ),
        (lambda f: np.save(f / "text_emb/text_emb_2.npy", Y[:80]), ValueError, "All have one width and dtype"),
        (lambda f: [path.unlink() for path in f.glob("*/*")], FileNotFoundError, "there are no embeddings in"),
    ],
)
def test_damaged_folders_are_refused(damage, error, message, tmp_path):
    damage(clip_retrieval(tmp_path / "data"))
    with pytest.raises(error, match=message):
        open_embeddings(tmp_path / "data")


def test_columns_are_chosen_by_modality(tmp_path):
    path = parquet_file(tmp_path / "a.parquet")
    store = open_embeddings(path, columns={"voxels": "image_embedding"})
    assert list(store.origins) == ["voxels"] and store.ids[3] == "3.jpg"
    with pytest.raises(ValueError, match=r"name the columns.*image_embedding"):
        open_embeddings(path, columns={"image": "nothing"})


def test_two_files_of_one_name_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    paths = [tmp_path / "emb.npy", tmp_path / "a" / "emb.npy"]
    for path in paths:
        np.save(path, X)
    with pytest.raises(ValueError, match=r"several files are called emb\.npy.*from_arrays"):
        open_embeddings(paths)


# What stays on disk

SPARSE = """
import resource, sys
import numpy as np
from freezealign import FeatureStore

path, n, width = sys.argv[1], 400_000, 1024
array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, width))  # 1.6 GB of holes
array[123], array[n - 1] = np.nan, 1
del array
status = open("/proc/self/status").read()
used = int(status.split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 400 * 2**20,) * 2)
for given in (path, np.load(path, mmap_mode="r")):
    store = FeatureStore.from_arrays({"image": given, "text": given})
    assert len(store) == n - 1 and [entry.index for entry in store.skipped] == [123]
    assert not store.in_memory
    assert store.select([n - 2])["image"].vectors().eq(1).all()
    assert store.resident(np.arange(5))["text"].vectors().eq(0).all()
try:
    np.zeros((n, width), np.float32)[:] = 1
except MemoryError:
    print("ok")
"""


def test_a_file_larger_than_memory_stays_on_disk(tmp_path):
    run = [sys.executable, "-c", SPARSE, str(tmp_path / "sparse.npy")]
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stdout.strip() == "ok", done.stderr


def test_arrays_in_memory_are_shared():
    store = FeatureStore.from_arrays({"image": X, "text": torch.from_numpy(Y)})
    for modality, array in (("image", X), ("text", Y)):
        assert np.shares_memory(store[modality].columns["sentence_embedding"].parts[0], array)


# From two arrays to a shared space


@each_form
def test_a_model_is_fitted_saved_loaded_and_retrieves(form, tmp_path):
    store = FORMS[form](tmp_path / "data", X)
    model = fitted(store.select(slice(TRAIN)))
    scores = recall(model)
    assert scores["t2i_R@1"] > 10 * scores["t2i_R@1_chance"] and scores["i2t_R@1"] > 10 * scores["i2t_R@1_chance"]
    model.save_pretrained(tmp_path / "model")
    loaded = FreezeAlign.from_pretrained(tmp_path / "model", device="cpu")
    for modality, vectors in (("image", X), ("text", Y)):
        assert np.array_equal(loaded.encode(vectors, modality=modality), model.encode(vectors, modality=modality))
        assert np.allclose(loaded.encode(store[modality]), loaded.encode(vectors, modality=modality), atol=2e-2)
    assert (
        FeatureStore.from_arrays({"image": X, "text": Y}).encoders["image"].identity
        == loaded.encoders["image"].identity
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "options", [{}, {"schedule": "paper", "epochs": 2, "batch_size": 50}], ids=["closed form", "trained"]
)
def test_fit_takes_arrays(dtype, options):
    model = FreezeAlign(WIDTHS, recipe="auto" if not options else "linear", dim=8, seed=0, device="cpu")
    other = FreezeAlign(WIDTHS, recipe="auto" if not options else "linear", dim=8, seed=0, device="cpu")
    arrays = {"image": spoiled()[:TRAIN].astype(dtype), "text": torch.from_numpy(Y[:TRAIN].astype(dtype))}
    history = model.fit(arrays, show_progress_bar=False, **options)
    assert [entry.index for entry in history.skipped] == list(BAD)
    other.fit(FeatureStore.from_arrays(arrays), show_progress_bar=False, **options)
    assert np.array_equal(model.encode(X, modality="image"), other.encode(X, modality="image"))
    with pytest.raises(InputError, match="item 3"):
        model.fit(arrays, strict=True)


def test_any_two_names_do():
    voxels, sensors = world("voxels"), world("sensors")
    model = FreezeAlign(
        {"voxels": 20, "sensors": FrozenEncoder.precomputed(20, "sensors")}, dim=8, seed=0, device="cpu"
    )
    model.fit({"voxels": voxels[:TRAIN], "sensors": sensors[:TRAIN]})
    named = ("voxels", "sensors")
    scores = RetrievalEvaluator(voxels[TRAIN:], sensors[TRAIN:], modalities=named)(model)
    assert scores["t2i_R@1"] > 10 * scores["t2i_R@1_chance"]
    assert CKAEvaluator(voxels[TRAIN:], sensors[TRAIN:], metrics=["cka"], modalities=named)(model)["cka"] > 0.5


def test_vectors_and_raw_items_go_together(texts):
    letters = FrozenEncoder(
        lambda items: np.array([[len(item), item.count("1")] for item in items], np.float32), "text"
    )
    model = FreezeAlign({"image": 24, "text": letters}, recipe="linear", dim=4, seed=0, device="cpu")
    model.fit({"image": X[:12], "text": texts}, init="random", epochs=1, batch_size=4, show_progress_bar=False)
    mixed = model.encode([texts[0], X[0], {"image": X[1]}])
    assert np.array_equal(mixed[[1, 2]], model.encode_image(X[:2])) and np.array_equal(
        mixed[0], model.encode_text(texts[0])
    )


def test_features_of_an_encoder_are_given_as_arrays(model, images, texts):
    pooled = FreezeAlign(dict(model.encoders), recipe="linear", dim=4, seed=0, device="cpu")
    made = pooled.extract_features(list(zip(images, texts)))
    arrays = {name: made[name].vectors() for name in ("image", "text")}
    store = FeatureStore.from_arrays(arrays, encoders=pooled.encoders)
    assert store.origins == made.origins and store.encoders == {}
    pooled.fit(store, init="random", epochs=1, batch_size=4, show_progress_bar=False)
    assert pooled.encode(images[:2]).shape == (2, 4)
    with pytest.raises(ValueError, match="made by another encoder"):
        pooled.fit(FeatureStore.from_arrays(arrays))


# Items


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (X[0, :5], "item 1: the image vector is 5 wide, the model takes 24"),
        (spoiled()[3], "item 1: the vector holds NaN"),
        ("a cat", "item 1: expected a vector .* str: 'a cat'"),
        (X[:2], r"item 1: expected a vector .* ndarray: float32 \(2, 24\)"),
        (np.zeros(24, np.int8), r"item 1: expected a vector .* ndarray: int8 \(24,\)"),
        (None, "item 1: got None"),
    ],
)
def test_an_item_that_is_no_vector_is_named_by_its_position(item, message):
    with pytest.raises(InputError, match=message):
        FreezeAlign(WIDTHS, dim=4, device="cpu").encode([X[0], item], modality="image")


def test_one_vector_is_one_item_and_rows_are_many():
    model = FreezeAlign(WIDTHS, dim=4, seed=0, device="cpu")
    everything = model.encode(X[:3], modality="image")
    assert everything.shape == (3, 4)
    for one in (X[1], torch.from_numpy(X[1]), X[1].astype(np.float64)):
        assert np.allclose(model.encode(one, modality="image"), everything[1], atol=1e-6)
    assert np.array_equal(model.encode(list(X[:3]), modality="image"), everything)
    assert model.encode(X[:0], modality="image").shape == (0, 4)
    assert len(model.encode_tokens(X[:3], modality="image")) == 3
    with pytest.raises(InputError, match=r"(?s)item 0: .*several vector towers.*modality="):
        model.encode(X[:3])
    assert np.array_equal(FreezeAlign({"image": 24}, dim=4, seed=0, device="cpu").encode(X[:3]), everything)


def test_an_evaluator_takes_several_vectors_an_item():
    model = fitted({"image": X[:TRAIN], "text": Y[:TRAIN]})
    many = np.stack([Y, Y], axis=1)
    scores = recall(model, texts=many)
    assert scores["n_texts"] == 2 * (N - TRAIN) and recall(model, X, Y)["t2i_R@1"] == scores["t2i_R@1"]
    evaluator = RetrievalEvaluator(X[TRAIN:], list(many[TRAIN:]), show_progress_bar=False).precompute(model)
    assert evaluator(model)["t2i_R@1"] == scores["t2i_R@1"]


@pytest.mark.parametrize("width", [0, -1, 10**6 + 1, "8"])
def test_a_width_that_nothing_has_is_refused(width):
    if isinstance(width, str):
        assert FrozenEncoder.precomputed(8, "text").identity != FrozenEncoder.precomputed(8, "text", "other").identity
        return
    with pytest.raises(ValueError, match="vectors are 1 to 1,000,000 wide"):
        FrozenEncoder.precomputed(width, "text")


@pytest.mark.parametrize(("width", "name"), [(23, "precomputed"), (24, "clip")])
def test_vectors_of_another_source_are_refused(width, name):
    encoders = {"image": FrozenEncoder.precomputed(width, "image", name), "text": 16}
    model = FreezeAlign(encoders, dim=4, device="cpu")
    with pytest.raises(ValueError, match="image features were made by another encoder"):
        model.fit(FeatureStore.from_arrays({"image": X, "text": Y}))
    with pytest.raises(ValueError, match="also needs 'text'"):
        model.fit(FeatureStore.from_arrays({"image": X[:, :width]}, encoders={"image": model.encoders["image"]}))


# The command line


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize("form", ["files", "named", "clip-retrieval", "parquet", "columns"])
def test_train_takes_embeddings(form, tmp_path):
    data = tmp_path / "data"
    arguments = {
        "files": lambda: files(data),
        "named": lambda: [f"{name}={path}" for name, path in zip(("image", "text"), files(data))],
        "clip-retrieval": lambda: [clip_retrieval(data)],
        "parquet": lambda: [parquet_file(data.with_suffix(".parquet"))],
        "columns": lambda: [
            *(parquet_file(data.with_suffix(".parquet")), "--column", "image=image_embedding"),
            *("--column", "text=text_embedding"),
        ],
    }[form]()
    code, output = run("train", *arguments, "--output", tmp_path / "model", "--dim", "8")
    assert code == 0 and "240 pairs" in output, output
    assert recall(FreezeAlign.from_pretrained(tmp_path / "model", device="cpu"))["t2i_R@1"] > 0.3


def test_train_says_which_encoders_a_store_needs(model, images, texts, tmp_path):
    model.extract_features(list(zip(images, texts)), tmp_path / "store", show_progress_bar=False)
    code, output = run("train", tmp_path / "store", "--output", tmp_path / "model")
    assert code == 1 and "--image-encoder" in output and "--text-encoder" in output
    code, output = run("train", tmp_path / "nothing.npy", "--output", tmp_path / "model")
    assert code == 1 and "nothing.npy" in output


# Functions of any modality


def double(items):
    return np.stack([np.asarray(item, np.float32).ravel() * 2 for item in items])


@pytest.mark.parametrize("options", [{"dim": 8}, {"sample": np.zeros((2, 2, 2))}])
def test_the_width_of_a_function_is_stated_or_found_by_an_item(options):
    assert FrozenEncoder(double, "voxels", **options).get_embedding_dimension() == 8


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((double, "voxels"), {}, "width of the 'voxels' encoder, dim=…, or .* sample="),
        ((double, "voxels"), {"dim": 0}, "dim=0"),
        (("dinov2-small",), {"dim": 8}, "dim= and sample= are for functions"),
    ],
)
def test_a_width_that_is_missing_or_has_no_effect_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        FrozenEncoder(*arguments, **options)


def test_the_documented_example_runs(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[2] / "docs" / "features.md"
    section = page.read_text(encoding="utf-8").split("## Your own embeddings")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL)), {})
    assert float(capsys.readouterr().out) > 0.1  # chance is 0.01
