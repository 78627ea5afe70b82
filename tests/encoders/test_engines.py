"""Every kind of encoder in every engine: the vectors are torch's, or it is refused and says why."""

from __future__ import annotations

import importlib.util
import logging
import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import test_timm
import test_transformers
import torch
import transformers as hf
from torch.nn import functional

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder
from freezealign.encoders import conversion, engines
from freezealign.encoders.base import Encoder
from freezealign.encoders.engines import EXACT, Choice, EngineError
from freezealign.encoders.transformers import TransformersTextEncoder, TransformersVisionEncoder, select_tower

EXACTLY, BFLOAT16 = 0.9999, 0.999
SETTINGS = {
    "openvino": ({"backend": "openvino", "dtype": "float32"}, EXACTLY),
    "openvino-bfloat16": ({"backend": "openvino", "dtype": "bfloat16"}, BFLOAT16),
    "onnx": ({"backend": "onnx"}, EXACTLY),
    "torch-bfloat16": ({"backend": "torch", "dtype": "bfloat16"}, BFLOAT16),
}
KINDS = [
    *(f"hf/{name}" for name in test_transformers.VISION),
    *(f"text/{name}" for name in test_transformers.TEXTS),
    *(f"timm/{name}" for name in test_timm.MODELS),
    "sbert/",
]
QUICK = {"hf/dinov2", "hf/convnext", "text/bert", "timm/efficientnet", "sbert/"}
REFUSED = {
    ("hf/dinov2-registers", "onnx"): "_upsample_bicubic2d_aa",
    ("hf/siglip", "onnx"): "transpose for tensor of unknown rank",
}
"""What an engine cannot convert, and what it says."""


def needs(name: str) -> pytest.MarkDecorator:
    missing = [package for package in engines.ENGINES[name] if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def rows():
    for name in KINDS:
        for engine in SETTINGS:
            marks = [needs(engine.split("-")[0]), *([] if name in QUICK else [pytest.mark.slow])]
            yield pytest.param(name, engine, marks=marks, id=f"{name}-{engine}")


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    """Where conversions are kept."""
    monkeypatch.setattr(huggingface_hub, "cached_assets_path", lambda *names: tmp_path / "kept")
    return tmp_path / "kept"


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory, sbert_folder) -> Callable[[str], Encoder]:
    def build(name: str) -> Encoder:
        kind, _, row = name.partition("/")
        torch.manual_seed(0)
        if kind == "timm":
            return test_timm.build(row)[0].encoder
        if kind == "sbert":
            return FrozenEncoder(sbert_folder).encoder
        if kind == "text":
            folder = tmp_path_factory.mktemp(row)
            test_transformers.save_tokenizer(folder, **test_transformers.TEXTS[row].tokenizer)
            model = select_tower(test_transformers.TEXTS[row].build().eval(), "text")
            return TransformersTextEncoder(model, hf.AutoTokenizer.from_pretrained(folder))
        model = test_transformers.VISION[row].build().eval()
        for parameter in model.parameters() if row == "sam" else ():  # new ones give nothing but zeros
            torch.nn.init.normal_(parameter, std=0.2)
        return TransformersVisionEncoder(select_tower(model, "image"), test_transformers.image_processor(row))

    return cache(build)


@pytest.fixture
def run_in(encoder_of):
    """A frozen encoder of one kind, run in what is said."""
    return lambda name, **settings: FrozenEncoder(encoder_of(name), **settings)


def assert_alike(found: dict, expected: dict, least: float) -> None:
    """All of it is alike: vectors by their cosine, one by one; masks, grids and shapes exactly."""
    assert found.keys() == expected.keys()
    mask = expected.get("attention_mask")
    for key, value in expected.items():
        if not isinstance(value, torch.Tensor):
            assert found[key] == value
        elif not value.is_floating_point():
            assert torch.equal(found[key], value)
        else:
            assert (found[key].shape, found[key].dtype) == (value.shape, torch.float32)
            both = [tensor.flatten(0, -2) for tensor in (found[key], value)]
            if mask is not None and value.ndim == 3:
                both = [tensor[mask.flatten().bool()] for tensor in both]
            # single tokens differ more than the vectors made of them
            assert functional.cosine_similarity(*both).min() > (least if value.ndim == 2 else 1 - 5 * (1 - least)), key


@pytest.mark.parametrize(("name", "engine"), list(rows()))
def test_every_kind_of_encoder_gives_torchs_features_in_every_engine(name, engine, run_in, images, texts):
    settings, least = SETTINGS[engine]
    exact, other = run_in(name), run_in(name, **settings)
    items = images if other.modality == "image" else texts
    if refusal := REFUSED.get((name, engine)):
        with pytest.raises(EngineError, match=refusal):
            other(other.preprocess(items))
        return
    for part in (items[:5], items[5:6], items[:2], items):  # batches of other sizes, texts of other lengths
        batch = other.preprocess(part)
        assert_alike(other(dict(batch)), exact(batch), least)
    assert str(other.engine.choice).startswith(engine.split("-")[0])


@pytest.mark.parametrize("engine", [pytest.param(name, marks=needs(name)) for name in ("openvino", "onnx")])
@pytest.mark.parametrize("name", ["hf/convnext", "timm/efficientnet"])
def test_pictures_of_several_sizes_each_have_a_graph(name, engine, run_in):
    exact, other = run_in(name), run_in(name, backend=engine)
    for size in ((64, 64), (96, 64), (64, 64)):
        batch = {"pixel_values": test_transformers.pixels(*size)}
        assert_alike(other(batch), exact(batch), EXACTLY)
    assert len(other.engine._runners) == 2


@needs("openvino")
def test_padding_is_left_out_even_if_the_first_batch_has_none(run_in):
    exact, other = run_in("text/bert"), run_in("text/bert", backend="openvino")
    other(other.preprocess(["a red apple", "a red apple"]))
    batch = other.preprocess(["a", "a red apple 1 2 3 4"])
    assert_alike(other(batch), exact(batch), EXACTLY)


# What is chosen


@pytest.fixture
def choices(monkeypatch):
    """Set what is fastest by default."""

    def choose(*found: Choice) -> None:
        monkeypatch.setattr(engines, "default_choices", lambda device: (*found, EXACT))

    return choose


def encode(encoder: FrozenEncoder, items: list) -> dict:
    return encoder(encoder.preprocess(items))


@needs("openvino")
def test_by_default_a_cpu_runs_openvino_and_an_accelerator_torch_in_bfloat16(own_choices, monkeypatch):
    found = own_choices("cpu")
    assert [choice.engine for choice in found][:-1] == ["openvino"] * (len(found) - 1) and found[-1] == EXACT
    assert own_choices("mps") == (Choice("torch", "bfloat16"), EXACT)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    own_choices.cache_clear()
    assert own_choices("cpu") == (EXACT,)
    own_choices.cache_clear()


@needs("openvino")
def test_the_default_is_decided_at_the_first_batch(run_in, images, choices):
    choices(Choice("openvino", "float32"))
    encoder = run_in("hf/dinov2")
    assert encoder.engine.choice is None
    encode(encoder, images[:2])
    assert encoder.engine.choice == Choice("openvino", "float32")


def scaled(encoder: Encoder, choice: Choice, *args) -> Callable:
    """An engine that gives other vectors: every second number is wrong."""

    def run(inputs):
        wrong = {name: value.clone() for name, value in encoder.graph(inputs).items()}
        for value in wrong.values():
            value[..., ::2] *= 1.2
        return wrong

    return run


def test_other_vectors_are_refused_with_their_cosine_where_they_were_asked_for(run_in, images, monkeypatch):
    monkeypatch.setattr(engines, "_build", scaled)
    encoder = run_in("hf/dinov2", dtype="bfloat16")
    with pytest.raises(EngineError, match=r"cosine 0\.9\d+ to torch in float32.*dtype='float32' and backend='torch'"):
        encode(encoder, images[:2])


def test_other_vectors_give_way_to_the_next_choice_by_default_with_a_warning(run_in, images, choices, monkeypatch):
    choices(Choice("torch", "bfloat16"))
    monkeypatch.setattr(engines, "_build", scaled)
    encoder = run_in("hf/dinov2")
    with pytest.warns(UserWarning, match=r"torch bfloat16 is not used.*cosine 0\.9\d+.*torch float32 runs it"):
        features = encode(encoder, images[:2])
    assert encoder.engine.choice == EXACT
    assert_alike(features, encode(run_in("hf/dinov2"), images[:2]), 1 - 1e-6)


def broken(*args):
    raise RuntimeError("no such operation")


def test_what_cannot_be_converted_is_run_by_torch_by_default_and_said_once(
    run_in, images, choices, monkeypatch, caplog
):
    choices(Choice("openvino", "bfloat16"), Choice("openvino", "float32"))
    monkeypatch.setattr(engines, "_build", broken)
    encoder = run_in("hf/dinov2")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            encode(encoder, images[:2])
    assert encoder.engine.choice == EXACT and len(caplog.records) == 2
    assert "no such operation" in caplog.text
    with pytest.raises(EngineError, match=r"openvino float32: RuntimeError: no such operation"):
        encode(run_in("hf/dinov2", backend="openvino", dtype="float32"), images[:2])


def test_an_engine_that_fails_later_gives_way_too(run_in, images, choices, monkeypatch):
    def fails_alone(encoder, *args):
        def run(inputs):
            if len(inputs["pixel_values"]) == 1:
                raise RuntimeError("a batch of one")
            return encoder.graph(inputs)

        return run

    choices(Choice("openvino", "float32"))
    monkeypatch.setattr(engines, "_build", fails_alone)
    encoder = run_in("hf/dinov2")
    encode(encoder, images[:2])
    assert_alike(encode(encoder, images[:1]), encode(run_in("hf/dinov2"), images[:1]), 1 - 1e-6)


def test_a_refusal_is_no_fault_of_the_items(run_in, images, monkeypatch, tmp_path):
    monkeypatch.setattr(engines, "_build", broken)
    model = FreezeAlign([run_in("hf/dinov2", dtype="bfloat16")], recipe="pooled", dim=4, device="cpu")
    for path in (None, tmp_path / "store"):
        with pytest.raises(EngineError, match="no such operation"):
            model.extract_features([{"image": image} for image in images], path, batch_size=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "tpu"}, r"unknown backend 'tpu'; choose one of \['torch', 'openvino', 'onnx'\]"),
        ({"dtype": "int8"}, r"unknown dtype 'int8'; choose one of \['float32', 'bfloat16'\]"),
        ({"backend": "onnx", "dtype": "bfloat16"}, r"float32 here; for bfloat16 take backend='openvino'"),
        ({"backend": "openvino", "compile": True}, r"compile=True is for torch"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(settings, message, run_in, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=message):
        run_in("hf/dinov2", **settings)


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_a_package_that_is_not_installed_is_named_with_its_extra(backend, run_in, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'freezealign\[{backend}\]'"):
        run_in("hf/dinov2", backend=backend)


@pytest.mark.parametrize("settings", [{"backend": "openvino"}, {"dtype": "bfloat16"}, {"compile": True}])
def test_functions_and_single_layers_are_run_as_they_are(settings, bert_folder):
    with pytest.raises(ValueError, match=r"CallableEncoder is run as it is.*Leave out dtype, backend and compile"):
        FrozenEncoder(lambda items: np.ones((len(items), 3)), "text", **settings)
    with pytest.raises(ValueError, match="OneLayer is run as it is"):
        FrozenEncoder(bert_folder, layer=1, **settings)


def test_weights_in_half_precision_are_run_as_they_are(run_in, images):
    encoder = deepcopy(run_in("hf/dinov2")).half()
    encode(encoder, images[:2])
    assert str(encoder.engine.choice) == "torch float16"
    encoder.set_engine(dtype="bfloat16")
    with pytest.raises(EngineError, match="weights are float16"):
        encode(encoder, images[:2])


def test_compiled_torch_gives_the_same(run_in, images, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda *args: function(*args))
    encoder = run_in("hf/dinov2", compile=True)
    assert_alike(encode(encoder, images[:3]), encode(run_in("hf/dinov2"), images[:3]), EXACTLY)


# What stays the same


@needs("openvino")
def test_identity_and_saved_models_know_nothing_of_the_engine(dinov2_folder, bert_folder, images, tmp_path):
    folders = {"image": dinov2_folder, "text": bert_folder}
    exact, fast = (FreezeAlign(folders, dim=8, seed=0, device="cpu", backend=name) for name in (None, "openvino"))
    np.testing.assert_allclose(fast.encode(images), exact.encode(images), atol=1e-5)
    assert fast.weights_digest() == exact.weights_digest()
    fast.save_pretrained(tmp_path / "model")
    loaded = FreezeAlign.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.encoders["image"].engine.asked == (None, None)
    loaded = FreezeAlign.from_pretrained(tmp_path / "model", device="cpu", backend="openvino", dtype="float32")
    assert loaded.encoders["image"].engine.asked == ("openvino", "float32")
    np.testing.assert_allclose(loaded.encode(images), exact.encode(images), atol=1e-5)


def test_a_model_chooses_for_its_encoders_that_are_no_functions(dinov2_folder):
    function = FrozenEncoder(lambda items: np.ones((len(items), 3)), "text")
    model = FreezeAlign({"image": dinov2_folder, "text": function}, dim=8, device="cpu", dtype="bfloat16")
    assert {name: own.engine.asked for name, own in model.encoders.items()} == {
        "image": (None, "bfloat16"),
        "text": (None, None),
    }


@needs("openvino")
@pytest.mark.parametrize("copy", [deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder))])
def test_a_copy_converts_anew_and_gives_the_same(copy, run_in, images):
    encoder = run_in("hf/dinov2", backend="openvino")
    expected = encode(encoder, images[:3])
    other = copy(encoder)
    assert other.engine.asked == ("openvino", None) and not other.engine._runners
    assert_alike(encode(other, images[:3]), expected, EXACTLY)


@needs("openvino")
def test_what_is_kept_stays_where_only_low_precision_disagrees(run_in, images, kept, choices, monkeypatch):
    choices(Choice("openvino", "bfloat16"), Choice("openvino", "float32"))
    monkeypatch.setattr(conversion, "WORTH_KEEPING", 0)
    found = iter([0.5, 1.0])
    monkeypatch.setattr(engines, "_agreement", lambda *features: next(found))
    encoder = run_in("hf/dinov2")
    with pytest.warns(UserWarning, match=r"openvino bfloat16 is not used.*openvino float32 runs it"):
        encode(encoder, images[:2])
    assert len(list(kept.iterdir())) == 1


@needs("openvino")
def test_what_takes_long_to_convert_is_kept_and_a_damaged_one_made_again(run_in, images, kept, monkeypatch):
    monkeypatch.setattr(conversion, "WORTH_KEEPING", 0)
    encode(run_in("hf/dinov2", backend="openvino"), images[:2])
    (folder,) = kept.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["graph.bin", "graph.xml"]
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_trace", broken)
        encode(run_in("hf/dinov2", backend="openvino"), images[:2])
        with pytest.raises(EngineError, match="no such operation"):
            encode(run_in("hf/convnext", backend="openvino"), images[:2])
    (folder / "graph.xml").write_text("damaged")
    encode(run_in("hf/dinov2", backend="openvino"), images[:2])
    assert (folder / "graph.xml").read_text() != "damaged"


# What a store says


def extract(model: FreezeAlign, images: list, path: Path | None, **options) -> FeatureStore:
    pairs = [{"image": image} for image in images]
    return model.extract_features(pairs, path, level="pooled", batch_size=2, shard_size=4, **options)


def model_of(folder: str, **settings) -> FreezeAlign:
    return FreezeAlign({"image": folder}, recipe="pooled", dim=8, seed=0, device="cpu", **settings)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_store_says_what_ran_its_encoders_and_any_model_takes_it(on_disk, dinov2_folder, images, tmp_path):
    path = tmp_path / "store" if on_disk else None
    store = extract(model_of(dinov2_folder, dtype="bfloat16"), images, path)
    assert store.origins["image"].engine == "torch bfloat16"
    model_of(dinov2_folder).encode(store["image"])
    if on_disk:
        exact = model_of(dinov2_folder)
        assert extract(exact, images, path, reuse=True).origins["image"].engine == "torch bfloat16"
        assert len(extract(exact, images, path)) == len(images)  # it is complete, so no encoder runs


def test_an_extraction_is_not_continued_in_another_engine(dinov2_folder, images, tmp_path):
    extract(model_of(dinov2_folder), images, tmp_path / "store")
    assert '"engine"' not in (tmp_path / "store/manifest.json").read_text()  # as in stores of before
    (tmp_path / "store/shards/00001.json").unlink()
    with pytest.raises(ValueError, match=r"modalities\.image\.engine = None, this run has torch bfloat16"):
        extract(model_of(dinov2_folder, dtype="bfloat16"), images, tmp_path / "store")
    assert len(extract(model_of(dinov2_folder), images, tmp_path / "store")) == len(images)


def test_the_first_items_decide_what_runs_an_extraction_and_nothing_else_does(
    dinov2_folder, images, tmp_path, choices, monkeypatch
):
    choices(Choice("torch", "bfloat16"))
    compared = []
    monkeypatch.setattr(engines, "_agreement", lambda expected, found: compared.append(expected) or 1.0)
    model = model_of(dinov2_folder)
    assert extract(model, images, tmp_path / "store").origins["image"].engine == "torch bfloat16"
    assert [len(features["token_embeddings"]) for features in compared] == [engines.COMPARED]
    assert model.encoders["image"].engine.asked == (None, None)  # only while it ran


def test_data_that_is_read_once_is_not_continued_in_another_engine(
    dinov2_folder, images, tmp_path, choices, monkeypatch
):
    choices(Choice("torch", "bfloat16"))
    found = iter([1.0, 0.5])  # it fits the sample inputs, but not the data
    monkeypatch.setattr(engines, "_agreement", lambda *features: next(found))
    pairs = ({"image": image} for image in images)
    with pytest.raises(EngineError, match=r"cosine 0\.5.*was begun so"):
        model_of(dinov2_folder).extract_features(pairs, tmp_path / "store", level="pooled", batch_size=2)


# How a model is made


def test_attention_and_model_arguments_reach_the_library(dinov2_folder, bert_folder, sbert_folder):
    for folder in (dinov2_folder, bert_folder):
        model = FrozenEncoder(folder, attn_implementation="eager").encoder.model
        assert model.config._attn_implementation == "eager"
    sbert = FrozenEncoder(sbert_folder, attn_implementation="eager").encoder.model
    assert sbert[0].model.config._attn_implementation == "eager"
    assert FrozenEncoder(bert_folder, model_kwargs={"hidden_act": "relu"}).encoder.model.config.hidden_act == "relu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_kwargs": {"torch_dtype": "float16"}}, r"cannot hold \['torch_dtype'\].*has dtype"),
        ({"model_kwargs": {"trust_remote_code": True}}, r"cannot hold \['trust_remote_code'\]"),
    ],
)
def test_arguments_that_are_decided_here_are_refused(settings, message, bert_folder):
    with pytest.raises(ValueError, match=message):
        FrozenEncoder(bert_folder, **settings)


def test_arguments_for_what_is_made_already_are_refused(encoder_of):
    with pytest.raises(ValueError, match=r"\['attn_implementation'\] are for encoders that are loaded by name"):
        FrozenEncoder(encoder_of("hf/dinov2"), attn_implementation="eager")


@pytest.mark.parametrize("name", ["someone/tiny", "timm/tiny"])
def test_hub_arguments_reach_every_download(name, monkeypatch):
    seen = []

    def download(name, **options):
        seen.append({key: options[key] for key in ("cache_dir", "local_files_only", "token", "revision")})
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConnectionError):
        FrozenEncoder(name, "image", revision="main", cache_dir="/there", local_files_only=True, token="secret")
    assert seen == [{"cache_dir": "/there", "local_files_only": True, "token": "secret", "revision": "main"}]
