from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _http as hub_http
from safetensors.torch import load_file

from freezealign import FreezeAlign, FrozenEncoder, list_encoders, register_encoder
from freezealign.encoders import EncoderReference, registry
from freezealign.encoders.registry import resolve

OFFLINE = {
    "image": ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"],
    "text": ["use-multilingual", "all-minilm-l6-v2"],
}
COMMIT = "0123456789" * 4
BACKENDS = [
    ("dinov2_folder", "transformers", "image"),
    ("bert_folder", "transformers", "text"),
    ("sbert_folder", "sentence_transformers", "text"),
    ("timm_folder", "timm", "image"),
]
each_backend = pytest.mark.parametrize(("fixture", "backend", "modality"), BACKENDS)


@pytest.fixture(autouse=True)
def registry_of_this_test(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(registry, "_FUNCTIONS", dict(registry._FUNCTIONS))


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory) -> str:
    import timm
    from timm.models._hub import save_for_hf

    sizes = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 0}
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    save_for_hf(timm.create_model("vit_tiny_patch16_224", **sizes), folder, safe_serialization=True)
    return str(folder)


def vectors(items: list) -> np.ndarray:
    return np.array([[len(str(item)), 1.0, 2.0] for item in items], dtype=np.float32)


# Names


NAMES = {
    "dinov2-large": ("image", "transformers", "facebook/dinov2-large"),
    "dinov2-with-registers-base": ("image", "transformers", "facebook/dinov2-with-registers-base"),
    "dinov3-vitl16": ("image", "transformers", "facebook/dinov3-vitl16-pretrain-lvd1689m"),
    "dinov3-convnext-tiny": ("image", "transformers", "facebook/dinov3-convnext-tiny-pretrain-lvd1689m"),
    "convnext-base-224": ("image", "transformers", "facebook/convnext-base-224"),
    "sam-vit-huge": ("image", "transformers", "facebook/sam-vit-huge"),
    "vit-base-patch16-224-in21k": ("image", "transformers", "google/vit-base-patch16-224-in21k"),
    "clip-vit-large-patch14-vision": ("image", "transformers", "openai/clip-vit-large-patch14"),
    "clip-vit-large-patch14-text": ("text", "transformers", "openai/clip-vit-large-patch14"),
    "siglip-base-patch16-224-text": ("text", "transformers", "google/siglip-base-patch16-224"),
    "all-roberta-large-v1": ("text", "sentence_transformers", "sentence-transformers/all-roberta-large-v1"),
    "all-minilm-l12-v2": ("text", "sentence_transformers", "sentence-transformers/all-MiniLM-L12-v2"),
    "paraphrase-multilingual-mpnet-base-v2": (
        "text",
        "sentence_transformers",
        "sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
    ),
    # of the extras offline and mpnet: from packages
    "efficientnet-lite0": ("image", "timm", "tf_efficientnet_lite0"),
    "efficientnet-lite1": ("image", "timm", "tf_efficientnet_lite1"),
    "efficientnet-lite2": ("image", "timm", "tf_efficientnet_lite2"),
    "use-multilingual": ("text", "callable", "use-multilingual"),
    "all-minilm-l6-v2": ("text", "sentence_transformers", "sentence-transformers/all-MiniLM-L6-v2"),
    "all-mpnet-base-v2": ("text", "sentence_transformers", "sentence-transformers/all-mpnet-base-v2"),
}
PACKAGED = {*OFFLINE["image"], *OFFLINE["text"], "all-mpnet-base-v2"}


@pytest.mark.parametrize("name", NAMES)
def test_a_short_name_stands_for_a_hub_id_or_a_package(name):
    modality, backend, source = NAMES[name]
    package = name if name in PACKAGED else None
    assert resolve(name) == EncoderReference(name, backend, modality, source, package)
    assert resolve(name, modality, revision="v1").revision == "v1"


@pytest.mark.parametrize("modality", ["image", "text", None])
def test_encoders_are_listed_by_modality_and_name_as_they_resolve(modality):
    listed = list_encoders(modality)
    kinds = {"image", "text"} if modality is None else {modality}
    assert {reference.modality for reference in listed} == kinds
    assert {name for name, (kind, *_) in NAMES.items() if kind in kinds} <= {reference.name for reference in listed}
    order = [(reference.modality, reference.name) for reference in listed]
    assert order == sorted(order) and len(set(order)) == len(order)
    assert [resolve(reference.name) for reference in listed] == listed


@pytest.mark.parametrize(
    ("name", "modality", "message"),
    [
        ("dinov2-large", "text", "'dinov2-large' is an encoder of image, not of text"),
        ("dinov2-lrge", None, "no encoder named 'dinov2-lrge'; did you mean .*'dinov2-large'"),
        ("DINOv2-large", None, "did you mean .*'dinov2-large'"),
        ("all-MiniLM-L6-v2", None, "did you mean .*'all-minilm-l6-v2'"),
        ("efficientnet-lite", None, "did you mean .*'efficientnet-lite0'"),
        ("clip-vit-base-patch32", None, "did you mean .*'clip-vit-base-patch32-vision'"),
        ("zzzz", None, r"no encoder named 'zzzz'; Any.*owner/model.*local folder.*freezealign encoders"),
        ("x" * 300, None, "no encoder named"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_with_what_else_works(name, modality, message):
    with pytest.raises(ValueError, match=message):
        resolve(name, modality)


# Local folders


@each_backend
def test_a_local_folder_tells_its_backend_and_modality_and_can_be_loaded(fixture, backend, modality, request):
    folder = request.getfixturevalue(fixture)
    encoder = FrozenEncoder(folder)
    reference = encoder.reference
    assert (reference.backend, reference.modality, reference.name) == (backend, modality, folder)
    items = ["a red apple"] if modality == "text" else [np.zeros((30, 40, 3), dtype=np.uint8)]
    tokens = encoder(encoder.preprocess(items))["token_embeddings"]
    assert tokens.shape[0] == 1 and tokens.shape[-1] == encoder.get_embedding_dimension()


def test_a_relative_folder_becomes_absolute_so_that_a_saved_model_finds_it_from_anywhere(dinov2_folder, monkeypatch):
    monkeypatch.chdir(Path(dinov2_folder).parent)
    assert resolve(Path(dinov2_folder).name).source == dinov2_folder


BOTH_TOWERS = {"model_type": "clip", "vision_config": {}, "text_config": {}}


@pytest.mark.parametrize(
    ("config", "asked", "modality"),
    [
        ({"model_type": "convnext", "num_channels": 3}, None, "image"),
        ({"model_type": "sam", "vision_config": {}}, None, "image"),
        ({"model_type": "siglip_vision_model", "image_size": 224}, None, "image"),
        ({"model_type": "gpt2", "vocab_size": 10}, None, "text"),
        ({"model_type": "t5", "vocab_size": 10}, None, "text"),
        (BOTH_TOWERS, "image", "image"),
        (BOTH_TOWERS, "text", "text"),
        (BOTH_TOWERS, None, r"has an image and a text tower; say which: \{'image'.*'text'"),
        (None, None, r"neither modules\.json nor config\.json"),
    ],
)
def test_a_config_tells_images_from_texts(config, asked, modality, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    if modality in ("image", "text"):
        assert resolve(str(tmp_path), asked).modality == modality
    else:
        with pytest.raises(ValueError, match=modality):
            resolve(str(tmp_path), asked)


# register_encoder


def test_a_registered_function_is_found_by_its_name_listed_and_suggested():
    register_encoder("my-words", vectors, modality="text", fingerprint="abc123")
    encoder = FrozenEncoder("my-words")
    assert (encoder.name, encoder.modality, encoder.get_embedding_dimension()) == ("my-words", "text", 3)
    assert encoder.fingerprint == "abc123"
    assert encoder(encoder.preprocess(["four"]))["sentence_embedding"].tolist() == [[4, 1, 2]]
    assert "my-words" in [reference.name for reference in list_encoders("text")]
    with pytest.raises(ValueError, match="did you mean 'my-words'"):
        resolve("my-word")


def test_a_registered_function_of_a_modality_of_yours_makes_a_tower():
    register_encoder("my-sounds", vectors, modality="audio", dim=3)
    register_encoder("my-words", vectors, modality="text")
    model = FreezeAlign(["my-sounds", "my-words"], dim=8, device="cpu")
    assert model.encode({"audio": 440}).shape == (8,)


@pytest.mark.parametrize(
    ("fixture", "backend", "limit"),
    [("bert_folder", "transformers", 16), ("sbert_folder", "sentence_transformers", 12)],
)
def test_a_registered_folder_is_found_by_its_name_and_keeps_the_backend_given(fixture, backend, limit, request):
    folder = request.getfixturevalue(fixture)
    register_encoder("mine", folder, modality="text", backend=backend)
    encoder = FrozenEncoder("mine")
    assert encoder.fingerprint == FrozenEncoder(folder).fingerprint
    assert (encoder.reference.backend, encoder.max_seq_length) == (backend, limit)


def test_registering_a_name_again_replaces_it():
    register_encoder("mine", vectors, modality="text")
    register_encoder("mine", lambda items: np.ones((len(items), 7), dtype=np.float32), modality="text")
    assert FrozenEncoder("mine").get_embedding_dimension() == 7


@pytest.mark.parametrize(
    ("encoder", "modality", "message"),
    [
        ("my-words", "image", "'my-words' is an encoder of text, not of image"),
        ("my-keras", None, r"'keras'.*transformers"),
        (EncoderReference("gone", "callable", "text", "gone"), None, r"register_encoder\('gone'.*encoders=\{'text'"),
    ],
)
def test_what_is_registered_otherwise_or_not_at_all_is_refused(encoder, modality, message, bert_folder):
    register_encoder("my-words", vectors, modality="text")
    register_encoder("my-keras", bert_folder, modality="text", backend="keras")
    with pytest.raises(ValueError, match=message):
        FrozenEncoder(encoder, modality)


# The hub


class FakeHub:
    """Serves folders as repositories under one commit, or fails."""

    def __init__(self) -> None:
        self.folders, self.error, self.requests = {}, None, []
        self.httpx = importlib.import_module(type(huggingface_hub.get_session()).__module__.split(".")[0])

    def answer(self, request):
        path = request.url.path.strip("/")
        self.requests.append(path)
        if self.error == "unreachable":
            raise self.httpx.ConnectError("Name or service not known")
        if self.error == "breaks off":
            if request.method == "GET" and path.endswith(".safetensors"):
                raise self.httpx.ReadError("Connection reset by peer")
        elif self.error:
            return self.httpx.Response(403 if self.error == "GatedRepo" else 404, headers={"x-error-code": self.error})
        for name, folder in self.folders.items():
            if path.startswith(f"{name}/resolve/"):
                return self.file(request, Path(folder) / path.removeprefix(f"{name}/resolve/").split("/", 1)[1])
            if path.startswith(f"api/models/{name}"):
                files = [str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file()]
                if "/tree/" in path:
                    entries = [{"type": "file", "path": file, "size": 1, "oid": "0"} for file in files]
                    return self.httpx.Response(200, json=entries)
                siblings = [{"rfilename": file} for file in files]
                return self.httpx.Response(200, json={"id": name, "sha": COMMIT, "siblings": siblings, "tags": []})
        return self.httpx.Response(404, headers={"x-error-code": "RepoNotFound"})

    def file(self, request, file: Path):
        headers = {"x-repo-commit": COMMIT}
        if not file.is_file():
            return self.httpx.Response(404, headers={**headers, "x-error-code": "EntryNotFound"})
        content = file.read_bytes()
        headers |= {"etag": f'"{hashlib.sha1(content).hexdigest()}"', "content-length": str(len(content))}
        return self.httpx.Response(200, headers=headers, content=b"" if request.method == "HEAD" else content)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    fake = FakeHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client waits 23 s before it gives up
    transport = fake.httpx.MockTransport(fake.answer)
    huggingface_hub.set_client_factory(lambda: fake.httpx.Client(transport=transport))
    yield fake
    huggingface_hub.set_client_factory(hub_http.default_client_factory)


@pytest.fixture(params=BACKENDS, ids=lambda row: row[0])
def tiny(request, hub) -> None:
    """An encoder on the hub, registered as ``tiny``, for each backend."""
    fixture, backend, modality = request.param
    hub.folders["someone/tiny"] = request.getfixturevalue(fixture)
    source = "hf-hub:someone/tiny" if backend == "timm" else "someone/tiny"
    register_encoder("tiny", source, modality=modality, backend=backend)


HUB_NAMES = {
    "dinov2-small": ("image",),
    "timm/vit_tiny_patch16_224": ("image",),
    "all-roberta-large-v1": ("text",),
    "clip-vit-base-patch32-text": ("text",),
    "someone/model": ("image", "text"),
}
"""Modalities that a name could be of."""


@pytest.mark.parametrize("offline", [True, False], ids=["offline mode", "no network"])
@pytest.mark.parametrize("name", HUB_NAMES)
def test_without_the_hub_the_error_names_the_encoders_of_that_modality_that_need_none(name, offline, hub, monkeypatch):
    hub.error = "unreachable"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(ConnectionError, match="cannot reach the model hub") as caught:
        FrozenEncoder(name)
    for modality, names in OFFLINE.items():
        assert all((one in str(caught.value)) == (modality in HUB_NAMES[name]) for one in names)
    assert "pip install 'freezealign[offline]'" in str(caught.value)


def test_a_network_that_breaks_off_during_a_download_is_answered_alike(tiny, hub):
    hub.error = "breaks off"
    with pytest.raises(ConnectionError, match="cannot reach the model hub"):
        FrozenEncoder("tiny")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepo", r"is gated: accept its licence.*hf auth login"),
        ("RepoNotFound", "neither a local folder nor a model on the hub"),
        ("RevisionNotFound", "no revision 'no-such-branch'"),
    ],
)
@pytest.mark.parametrize("name", HUB_NAMES)
def test_what_the_hub_refuses_is_not_taken_for_a_network_failure(name, error, message, hub):
    hub.error = error
    with pytest.raises(ValueError, match=message):
        FrozenEncoder(name, revision="no-such-branch")


@pytest.mark.parametrize("name", ["a/b/c", "owner/ model", "owner/.."])
def test_what_cannot_be_a_hub_id_is_refused_without_asking_the_hub(name, hub):
    with pytest.raises(ValueError, match="neither a local folder nor a model on the hub"):
        FrozenEncoder(name)
    assert not hub.requests


@each_backend
def test_a_hub_id_tells_its_backend_and_modality(fixture, backend, modality, request, hub):
    hub.folders["someone/tiny"] = request.getfixturevalue(fixture)
    reference = resolve("someone/tiny")
    assert (reference.backend, reference.modality) == (backend, modality)


def test_a_hub_encoder_remembers_the_commit_it_came_from(tiny, hub):
    assert FrozenEncoder("tiny").reference.revision == COMMIT


def test_every_file_is_of_the_revision_asked_for(tiny, hub):
    FrozenEncoder("tiny", revision="v1")
    revisions = {path.split("/resolve/")[1].split("/")[0] for path in hub.requests if "/resolve/" in path}
    assert revisions <= {"v1", COMMIT} and not any(path.endswith("/revision/main") for path in hub.requests)


def test_an_encoder_in_the_cache_needs_no_network(dinov2_folder, hub):
    hub.folders["someone/tiny"] = dinov2_folder
    register_encoder("tiny", "someone/tiny", modality="image")
    first = FrozenEncoder("tiny").fingerprint
    hub.error = "unreachable"
    assert FrozenEncoder("tiny").fingerprint == first


@pytest.mark.parametrize(("fixture", "backend", "modality"), BACKENDS, ids=lambda value: value)
def test_pickles_of_a_repository_are_not_even_fetched_unless_the_user_says_so(
    fixture, backend, modality, request, hub, tmp_path
):
    folder = Path(shutil.copytree(request.getfixturevalue(fixture), tmp_path / "pickled"))
    expected = FrozenEncoder(str(folder), modality).fingerprint
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    hub.folders["someone/tiny"] = folder
    with pytest.raises(ValueError, match=r"'someone/tiny' has no safetensors file.*allow_pickle=True"):
        FrozenEncoder("someone/tiny")
    assert not any(path.endswith(".bin") for path in hub.requests)
    encoder = FrozenEncoder("someone/tiny", allow_pickle=True)
    assert (encoder.fingerprint, encoder.reference.revision) == (expected, COMMIT)


def test_an_id_in_the_cache_needs_no_network(dinov2_folder, hub):
    hub.folders["someone/tiny"] = dinov2_folder
    first = FrozenEncoder("someone/tiny").fingerprint
    hub.error = "unreachable"
    assert FrozenEncoder("someone/tiny").fingerprint == first
