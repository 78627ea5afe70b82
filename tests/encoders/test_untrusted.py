"""What folders of encoders and functions may not do: hang, allocate, unpickle, or give odd things in silence."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from transformers import EsmConfig, EsmModel, EsmTokenizer

from freezealign import FreezeAlign, FrozenEncoder
from freezealign.encoders.callable import CallableEncoder

KINDS = ("transformers", "timm", "sentence_transformers")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def folder_of(tmp_path, bert_folder, sbert_folder):
    """Builds a folder of each backend that a test may change."""

    def build(kind: str) -> Path:
        folder = tmp_path / kind
        if kind == "timm":
            timm.models._hub.save_for_hf(timm.create_model("test_resnet"), folder, safe_serialization=True)
            return folder
        return Path(shutil.copytree(bert_folder if kind == "transformers" else sbert_folder, folder))

    return build


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def pickled(folder: Path, content=None) -> dict[str, torch.Tensor]:
    """Put a pickle in place of a folder's safetensors; return its tensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors if content is None else content, folder / "pytorch_model.bin")
    return tensors


# Pickled weights


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_weights_are_opened_only_where_the_user_says_so(kind, folder_of):
    folder = folder_of(kind)
    expected = FrozenEncoder(str(folder)).fingerprint
    pickled(folder)
    with pytest.raises(ValueError, match=r"pickled weights are not opened.*allow_pickle=True"):
        FrozenEncoder(str(folder))
    assert FrozenEncoder(str(folder), allow_pickle=True).fingerprint == expected


@pytest.mark.parametrize("kind", KINDS)
def test_code_in_a_pickle_is_not_run_even_then(kind, folder_of, tmp_path):
    folder, ran = folder_of(kind), tmp_path / "ran"
    pickled(folder, {"weight": Payload(ran)})
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        FrozenEncoder(str(folder), allow_pickle=True)
    assert not ran.exists()


def test_a_saved_model_cannot_allow_pickles(folder_of, tmp_path):
    folder = folder_of("transformers")
    pickled(folder)
    FrozenEncoder(str(folder), allow_pickle=True).save(str(tmp_path / "saved"))
    edit(tmp_path / "saved" / "config.json", allow_pickle=True)
    with pytest.raises(ValueError, match="pickled weights are not opened"):
        FrozenEncoder.load(str(tmp_path / "saved"))


@pytest.mark.parametrize("kind", KINDS)
def test_safetensors_are_preferred_to_a_pickle_beside_them(kind, folder_of, tmp_path):
    folder = folder_of(kind)
    torch.save({"weight": Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    expected = FrozenEncoder(str(folder)).fingerprint
    assert FrozenEncoder(str(folder), allow_pickle=True).fingerprint == expected and not (tmp_path / "ran").exists()


@pytest.fixture
def dense_folder(bert_folder, tmp_path) -> Path:
    transformer = Transformer(bert_folder)
    modules = [transformer, Pooling(transformer.get_embedding_dimension()), Dense(20, 6)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "dense"))
    return tmp_path / "dense"


def test_a_later_module_of_a_sentence_transformer_is_not_unpickled_either(dense_folder):
    expected = FrozenEncoder(str(dense_folder)).fingerprint
    pickled(dense_folder / "2_Dense")
    with pytest.raises(ValueError, match=r"2_Dense.*pickled weights are not opened"):
        FrozenEncoder(str(dense_folder))
    assert FrozenEncoder(str(dense_folder), allow_pickle=True).fingerprint == expected


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors.index.json", {"metadata": {}, "weight_map": {"embeddings.weight": "evil.bin"}}),
        ("config.json", {"transformers_weights": "adapter_model.bin"}),
    ],
)
def test_a_json_file_cannot_name_a_pickle(file, content, folder_of):
    folder = folder_of("transformers")
    pickled(folder)
    (folder / "pytorch_model.bin").rename(folder / "evil.bin")
    path = folder / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **content}))
    with pytest.raises(ValueError, match="pickled weights are not opened"):
        FrozenEncoder(str(folder), "text")


def test_a_configuration_of_timm_cannot_name_other_weights(folder_of):
    folder = folder_of("timm")
    expected = FrozenEncoder(str(folder)).fingerprint
    own = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    edit(
        folder / "config.json", pretrained_cfg={**own, "state_dict": {"a": 1}, "custom_load": True, "file": "evil.bin"}
    )
    assert FrozenEncoder(str(folder)).fingerprint == expected


# Whole checkpoints


@pytest.mark.parametrize("damage", ["a layer is missing", "another prefix"])
def test_a_sentence_transformer_that_lacks_what_is_used_is_refused_with_a_list(damage, folder_of):
    folder = folder_of("sentence_transformers")
    tensors = load_file(folder / "model.safetensors")
    if damage == "another prefix":
        tensors = {f"foreign.{name}": tensor for name, tensor in tensors.items()}
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if "layer.1." not in name}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ of the encoder's \d+ weights.*encoder\.layer"):
        FrozenEncoder(str(folder))


@pytest.mark.parametrize("change", ["no pooler", "a prefix that the library knows"])
def test_a_sentence_transformer_without_what_nothing_reads_is_the_same_at_every_load(change, folder_of):
    folder = folder_of("sentence_transformers")
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    if change != "no pooler":
        tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    expected = FrozenEncoder(str(folder))
    batch = expected.preprocess(["a red apple"])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    first, second = FrozenEncoder(str(folder)), FrozenEncoder(str(folder))
    assert first.identity == second.identity
    assert torch.equal(first(batch)["sentence_embedding"], expected(batch)["sentence_embedding"])


# JSON files


def put_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def put_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def put_link(target: str):
    def put(path: Path) -> None:
        outside = path.parents[2] / "outside.json"
        outside.write_text(path.read_text() if path.exists() else "{}")
        path.unlink(missing_ok=True)
        path.symlink_to(outside if target == "outside" else target)

    return put


ODD_FILES = {
    "a fifo": (put_fifo, "is a pipe and no file"),
    "a folder": (put_folder, "is a folder and no file"),
    "a device": (put_link("/dev/zero"), "is a device and no file"),
    "a dead link": (put_link("nowhere"), "is missing"),
    "a link out": (put_link("outside"), "link out of the model's folder"),
    "deep": (lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000), "not valid JSON"),
    "nearly too deep": (lambda path: path.write_text('{"a":' * 960 + "1" + "}" * 960), ""),
    "a string": (lambda path: path.write_text('"text"'), "holds a str"),
    "no JSON": (lambda path: path.write_text("{"), "not valid JSON"),
}
JSON_OF = {
    "transformers": ["config.json", "tokenizer_config.json"],
    "timm": ["config.json"],
    "sentence_transformers": ["config.json", "modules.json", "tokenizer_config.json", "1_Pooling/config.json"],
}


@pytest.mark.parametrize("odd", ODD_FILES)
@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, files in JSON_OF.items() for file in files])
def test_an_odd_json_file_is_refused_by_its_name(kind, file, odd, folder_of):
    folder, (put, message) = folder_of(kind), ODD_FILES[odd]
    put(folder / file)
    with pytest.raises(ValueError, match=f"{re.escape(Path(file).name)}.*{message}"):
        FrozenEncoder(str(folder), "image" if kind == "timm" else "text")


@pytest.mark.parametrize("odd", ["a fifo", "a device", "a link out", "a string"])
def test_an_odd_preprocessor_is_refused_by_its_name(odd, dinov2_folder, tmp_path):
    folder, (put, message) = Path(shutil.copytree(dinov2_folder, tmp_path / "copy")), ODD_FILES[odd]
    put(folder / "preprocessor_config.json")
    with pytest.raises(ValueError, match=f"preprocessor_config.*{message}"):
        FrozenEncoder(str(folder))


@pytest.mark.parametrize("odd", ["a fifo", "a device"])
def test_an_odd_reference_in_a_saved_model_is_refused_by_its_name(odd, folder_of, tmp_path):
    FrozenEncoder(str(folder_of("transformers"))).save(str(tmp_path / "saved"))
    ODD_FILES[odd][0](tmp_path / "saved" / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is a (pipe|device) and no file"):
        FrozenEncoder.load(str(tmp_path / "saved"))


def test_the_links_of_the_hubs_cache_are_followed(folder_of, tmp_path):
    source = folder_of("transformers")
    snapshot, blobs = tmp_path / "repo" / "snapshots" / ("0" * 40), tmp_path / "repo" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(source, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert FrozenEncoder(str(snapshot)).fingerprint == FrozenEncoder(str(source)).fingerprint


HUGE = 10**9
SIZES = [
    ("transformers", "config.json", {"hidden_size": HUGE}),
    ("transformers", "config.json", {"hidden_size": float("inf")}),
    ("transformers", "config.json", {"hidden_size": 200_000, "intermediate_size": 200_000}),
    ("transformers", "config.json", {"num_hidden_layers": HUGE}),
    ("transformers", "config.json", {"num_hidden_layers": -1}),
    ("transformers", "config.json", {"vocab_size": HUGE}),
    ("transformers", "config.json", {"max_position_embeddings": HUGE}),
    ("sentence_transformers", "config.json", {"hidden_size": HUGE}),
    ("sentence_transformers", "config.json", {"vocab_size": 10**7}),
    ("timm", "config.json", {"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": HUGE}}),
    ("timm", "config.json", {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": HUGE}}),
    ("timm", "config.json", {"architecture": "vit_giant_patch14_224", "model_args": {"embed_dim": 160_000}}),
]


@pytest.mark.parametrize(("kind", "file", "change"), SIZES, ids=lambda value: str(value)[:60])
def test_a_size_that_nothing_has_is_refused_before_anything_of_it_is_made(kind, file, change, folder_of, monkeypatch):
    folder = folder_of(kind)
    edit(folder / file, **change)
    for name in ("kaiming_uniform_", "normal_", "trunc_normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor if tensor.is_meta else 1 / 0)
    with pytest.raises(ValueError, match=re.escape(str(folder / file))):
        FrozenEncoder(str(folder), "image" if kind == "timm" else "text")


def test_a_module_behind_a_transformer_is_not_made_larger_than_its_weights(dense_folder):
    edit(dense_folder / "2_Dense" / "config.json", in_features=10**6, out_features=10**6)
    with pytest.raises(ValueError, match=r"2_Dense/config\.json.*1,000,001,000,000 numbers"):
        FrozenEncoder(str(dense_folder))


TYPES = [
    *(
        ("transformers", "config.json", {key: odd})
        for key in ("hidden_size", "vocab_size")
        for odd in ("x", None, [], {})
    ),
    *(("transformers", "config.json", {"hidden_act": odd}) for odd in ("foo", 3, [])),
    *(("transformers", "config.json", {"num_attention_heads": odd}) for odd in (0, -2, 3)),
    *(("transformers", "config.json", {"architectures": odd}) for odd in (3, [3])),
    *(("transformers", "config.json", {"model_type": odd}) for odd in (3, "foo", None)),
    ("transformers", "model.safetensors.index.json", {"weight_map": 3}),
    *(("timm", "config.json", {"architecture": odd}) for odd in (3, "foo", None, [])),
    *(("timm", "config.json", {"model_args": odd}) for odd in (3, {"foo": 1}, {"pretrained_strict": False})),
    *(("timm", "config.json", {"pretrained_cfg": odd}) for odd in (3, {"foo": 1}, {"input_size": 3})),
    *(("sentence_transformers", "1_Pooling/config.json", {"pooling_mode": odd}) for odd in (3, "foo")),
]


@pytest.mark.parametrize(("kind", "file", "change"), TYPES, ids=lambda value: str(value)[:60])
def test_a_wrong_type_is_a_value_error_that_names_the_folder(kind, file, change, folder_of):
    folder = folder_of(kind)
    path = folder / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **change}))
    with pytest.raises(ValueError, match=kind):
        FrozenEncoder(str(folder), "image" if kind == "timm" else "text")


@pytest.mark.parametrize("modules", [{}, [3], [{}], [{"name": "0", "path": 3, "type": "x"}], [], [None]], ids=str)
def test_odd_modules_are_refused_by_name(modules, folder_of):
    folder = folder_of("sentence_transformers")
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"sentence_transformers"):
        FrozenEncoder(str(folder))


def test_a_module_outside_the_folder_is_refused(folder_of):
    folder = folder_of("sentence_transformers")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../outside"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="points outside"):
        FrozenEncoder(str(folder))


@pytest.mark.parametrize(
    "change",
    [
        *({"image_size": odd} for odd in ("x", 0, -1, 1.5, HUGE, True, [])),
        *({"max_length": odd} for odd in ("x", 0, HUGE)),
        *({key: odd} for key in ("package", "revision") for odd in (3, [], {})),
        {"layer": "x"},
        {"package": "no-such-package"},
    ],
    ids=str,
)
def test_an_odd_reference_is_refused_by_its_key(change, folder_of, tmp_path):
    FrozenEncoder(str(folder_of("transformers"))).save(str(tmp_path / "saved"))
    edit(tmp_path / "saved" / "config.json", **change)
    with pytest.raises(ValueError, match=next(iter(change))):
        FrozenEncoder.load(str(tmp_path / "saved"))


# Tokenizers without a fast backend


@pytest.fixture
def slow_folder(tmp_path) -> Path:
    folder = tmp_path / "esm"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    EsmModel(EsmConfig(vocab_size=10, pad_token_id=1, max_position_embeddings=16, **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", "L", "A", "G", "V", "<mask>"]))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


TOKEN = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
SLOW = {
    "swapped words": lambda f: (f / "vocab.txt").write_text((f / "vocab.txt").read_text().replace("L\nA", "A\nL")),
    "a comment in the vocabulary": lambda f: (f / "vocab.txt").write_text((f / "vocab.txt").read_text() + "\n"),
    "an option": lambda f: edit(f / "tokenizer_config.json", do_lower_case=True),
    "a special token": lambda f: edit(f / "tokenizer_config.json", mask_token="V"),
    "an added token": lambda f: edit(
        f / "tokenizer_config.json", added_tokens_decoder={"9": {**TOKEN, "content": "LA"}}
    ),
}


@pytest.mark.parametrize("change", SLOW)
def test_a_changed_tokenizer_without_a_fast_backend_is_another_encoder(change, slow_folder, tmp_path):
    encoder = FrozenEncoder(str(slow_folder), "text")
    assert encoder.encoder.tokenizer.__class__ is EsmTokenizer
    assert FrozenEncoder(str(slow_folder), "text").identity == encoder.identity
    moved = shutil.copytree(slow_folder, tmp_path / "moved")
    assert FrozenEncoder(str(moved), "text").identity == encoder.identity
    encoder.save(str(tmp_path / "saved"))
    SLOW[change](slow_folder)
    with pytest.raises(ValueError, match=r"its preprocessing.tokenizer|its preprocessing.vocabulary"):
        FrozenEncoder.load(str(tmp_path / "saved"))


def test_a_model_saved_before_files_of_tokenizers_counted_still_loads(slow_folder, tmp_path):
    FrozenEncoder(str(slow_folder), "text").save(str(tmp_path / "saved"))
    path = tmp_path / "saved" / "config.json"
    config = json.loads(path.read_text())
    del config["preprocessing"]["tokenizer_files"]
    path.write_text(json.dumps(config))
    assert FrozenEncoder.load(str(tmp_path / "saved")).modality == "text"


def test_a_tokenizer_with_a_fast_backend_has_the_identity_it_had(bert_folder):
    assert set(FrozenEncoder(bert_folder).identity["preprocessing"]) == {"max_length", "vocabulary", "tokenizer"}


# Functions


def raising(error: Exception):
    def function(items: list[str]):
        raise error

    return function


def each(value):
    return lambda items: [value for _ in items]


FUNCTIONS = {
    "None": (each(None), "not None"),
    "widths": (lambda items: [np.ones(3 + n) for n in range(len(items))], r"one width, got \[3, 4\]"),
    "token widths": (lambda items: [np.ones((2, 3 + n)) for n in range(len(items))], r"one width, got \[3, 4\]"),
    "vectors and tokens": (lambda items: [np.ones((2,) * (1 + n)) for n in range(len(items))], "vectors"),
    "complex": (lambda items: np.ones((len(items), 3), dtype=complex), "complex"),
    "complex tensor": (lambda items: torch.ones(len(items), 3, dtype=torch.complex64), "complex"),
    "objects": (each(np.array([object()])), "object"),
    "words": (each("text"), "vectors"),
    "ragged": (each([[1.0, 2.0], [3.0]]), "vectors"),
    "four axes": (lambda items: np.ones((len(items), 2, 2, 2)), "vectors"),
    "scalars": (lambda items: np.ones(len(items)), "vectors"),
    "no width": (lambda items: np.ones((len(items), 0)), "vectors"),
    "dict": (lambda items: dict.fromkeys(items, 1), "not a dict"),
    "no end": (lambda items: (np.ones(3) for _ in itertools.count()), "gave 3 vectors"),
    "ends early": (lambda items: (np.ones(3) for _ in items[1:]), "gave 1 vectors"),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_whatever_a_function_does_is_a_clear_error(kind):
    function, message = FUNCTIONS[kind]
    encoder = FrozenEncoder(CallableEncoder(function, "text", dim=3))
    with pytest.raises(ValueError, match=message):
        encoder(encoder.preprocess(["a", "b"]))


@pytest.mark.parametrize("function", [raising(KeyError("own")), lambda items: ({}["own"] for _ in items)])
def test_what_a_function_raises_comes_out_as_it_is(function):
    encoder = FrozenEncoder(CallableEncoder(function, "text", dim=3))
    with pytest.raises(KeyError, match="own"):
        encoder(encoder.preprocess(["a", "b"]))


def test_one_width_is_kept_from_batch_to_batch():
    encoder = FrozenEncoder(lambda items: np.ones((len(items), len(items[0]))), "text")
    with pytest.raises(ValueError, match=r"one width, got \[2, 5\]"):
        encoder(encoder.preprocess(["ab"]))


def test_what_can_be_read_is_read():
    for function in (
        lambda items: np.ones((len(items), 3))[:, ::-1],
        lambda items: (np.ones(3) for _ in items),
        lambda items: [[True, False, True] for _ in items],
        lambda items: torch.ones(len(items), 3).to_sparse(),
    ):
        encoder = FrozenEncoder(function, "text")
        assert encoder(encoder.preprocess(["a", "b"]))["sentence_embedding"].shape == (2, 3)


def test_one_item_that_a_function_cannot_take_costs_itself_alone(tmp_path):
    def function(items: list[str]) -> np.ndarray:
        if "bad" in items:
            raise KeyError("bad")
        return np.array([[len(item), np.nan if item == "nan" else 1.0] for item in items])

    words = FrozenEncoder(function, "text")
    other = FrozenEncoder(lambda items: np.ones((len(items), 2)), "image")
    model = FreezeAlign([other, words], recipe="pooled", dim=4, seed=0, device="cpu")
    pairs = [(np.zeros((4, 4), np.uint8), text) for text in ("a", "bad", "b", "nan", "c")]
    store = model.extract_features(pairs, tmp_path / "store", level="pooled", show_progress_bar=False)
    assert len(store) == 3 and [skip.index for skip in store.skipped] == [1, 3]
