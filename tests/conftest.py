"""Tiny random encoders, saved to folders once a session: everything a hub would hold, without a hub."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from freezealign import FreezeAlign, FrozenEncoder
from freezealign.encoders import engines

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
torch.set_num_threads(1)  # tiny models on few cores: more threads only wait for each other


@pytest.fixture(scope="session", autouse=True)
def own_choices():
    """Run encoders in torch and float32 by default, so that what is compared is exact; give the library's own choice.

    Tests of engines put it back: ``monkeypatch.setattr(engines, "default_choices", own_choices)``.
    """
    with pytest.MonkeyPatch.context() as patch:
        own = engines.default_choices
        patch.setattr(engines, "default_choices", lambda device: (engines.EXACT,))
        yield own


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Leave files to the system's cache: tests kill processes, which lose nothing of it, and not machines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


WORDS = ["a", "red", "green", "blue", "apple", "car", "dog", "number", *map(str, range(50))]


def make_tokenizer(max_length: int = 16):
    """A word-level tokenizer with BERT's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **names)


def save_vision(folder: Path, model) -> str:
    """Save a vision model and an image processor of 28 pixels with ImageNet's statistics."""
    from transformers import ViTImageProcessor

    model.save_pretrained(folder)
    size = {"height": 28, "width": 28}
    ViTImageProcessor(size=size, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory) -> str:
    """A DINOv2 of width 24 with patches of 7 pixels: a 4 x 4 grid and CLS."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
    return save_vision(tmp_path_factory.mktemp("dinov2"), Dinov2Model(config))


@pytest.fixture(scope="session")
def vit_folders(tmp_path_factory) -> dict[int, str]:
    """ViTs of width 16 with patches of 7 and of 14 pixels: 4 x 4 and 2 x 2 grids, and CLS."""
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    folders = {}
    for patch in (7, 14):
        torch.manual_seed(patch)
        model = ViTModel(ViTConfig(**shape, image_size=28, patch_size=patch))
        folders[patch] = save_vision(tmp_path_factory.mktemp(f"vit{patch}"), model)
    return folders


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> str:
    """A BERT of width 20 with dropout 0.1 that reads 16 tokens."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=64,
        hidden_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def sbert_folder(bert_folder, tmp_path_factory) -> str:
    """The same BERT as a sentence-transformers folder with mean pooling and normalisation."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    folder = tmp_path_factory.mktemp("sbert")
    transformer = Transformer(bert_folder, max_seq_length=12)
    modules = [transformer, Pooling(transformer.get_embedding_dimension()), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    return str(folder)


@pytest.fixture
def images() -> list[Image.Image]:
    """Twelve different pictures of different sizes."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(30, 60, (12, 2))
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture
def texts() -> list[str]:
    """Twelve different texts of different lengths."""
    return [" ".join(["a red apple", *map(str, range(n))]) for n in range(12)]


@pytest.fixture
def pairs(images, texts) -> list[tuple[Image.Image, str]]:
    """Twelve image-text pairs."""
    return list(zip(images, texts))


@pytest.fixture
def model(dinov2_folder, bert_folder) -> FreezeAlign:
    """The paper's wiring on the tiny encoders, 16 wide, seeded."""
    return FreezeAlign({"image": dinov2_folder, "text": bert_folder}, recipe="token", dim=16, seed=0, device="cpu")


@pytest.fixture
def callable_model() -> FreezeAlign:
    """A model of two plain functions; nothing to download, nothing to wait for."""

    def pixels(items: list[Image.Image]) -> np.ndarray:
        return np.stack([np.asarray(item.resize((4, 4)), dtype=np.float32).reshape(-1) / 255 for item in items])

    def letters(items: list[str]) -> np.ndarray:
        return np.stack([np.bincount([ord(c) % 32 for c in item], minlength=32).astype(np.float32) for item in items])

    encoders = [FrozenEncoder(pixels, "image"), FrozenEncoder(letters, "text")]
    return FreezeAlign(encoders, recipe="token", dim=8, seed=0, device="cpu")
