"""What transformers' models give, row by row of two tables: vision models, and text models."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from freezealign import FreezeAlign, FrozenEncoder

BODY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
DINO = {**BODY, "image_size": 28, "patch_size": 7}
VIT = {**DINO, "intermediate_size": 32}
STAGES = {"hidden_sizes": [4, 6, 8, 12], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 7, "image_size": 28, "patch_size": 2}
RESNET = {"embedding_size": 8, "layer_type": "basic", **STAGES}
TEXT = {**BODY, "intermediate_size": 32, "vocab_size": 64}
SHORT_TEXT, ROBERTA = (
    {**TEXT, "max_position_embeddings": 16},
    {**TEXT, "max_position_embeddings": 18, "pad_token_id": 1},
)
CLIP_TEXT = {**SHORT_TEXT, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
T5 = {"vocab_size": 64, "d_model": 24, "d_kv": 12, "d_ff": 32, "num_layers": 2, "num_heads": 2}
GPT2 = {"vocab_size": 64, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 2}


def of(name: str, **settings) -> Callable[[], hf.PreTrainedModel]:
    """Builds the model of a family from its settings."""
    return lambda: getattr(hf, f"{name}Model")(getattr(hf, f"{name}Config")(**settings))


def sam() -> hf.PreTrainedModel:
    vision = {**BODY, "image_size": 32, "patch_size": 8, "output_channels": 12, "window_size": 2, "num_pos_feats": 6}
    vision |= {"global_attn_indexes": [1], "mlp_dim": 32}
    prompt = {"hidden_size": 12, "image_size": 32, "patch_size": 8}
    mask = {"hidden_size": 12, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 12}
    config = hf.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask)
    return hf.SamModel(config)


clip = of("CLIP", vision_config=VIT, text_config=CLIP_TEXT, projection_dim=12)
siglip = of("Siglip", vision_config=VIT, text_config=SHORT_TEXT)


class Vision(NamedTuple):
    """A vision model, and what is to be found in its own output."""

    build: Callable[[], hf.PreTrainedModel]
    size: tuple[int, int]  # of the pixels it is given
    grid: tuple[int, int]  # of their patches
    prefix: int | str  # tokens before the patches, or "map" (B, D, rows, columns)
    summary: str  # "cls", "pooled" or the "mean" of the patches
    larger: dict[int, tuple[int, int]] = {}  # image_size= to grid  # noqa: RUF012
    side: int = 28  # of its processor
    tower: str = ""


VISION = {
    "dinov2": Vision(of("Dinov2", **DINO), (21, 28), (3, 4), 1, "cls", {42: (6, 6), 30: (4, 4)}),
    "dinov2-registers": Vision(
        of("Dinov2WithRegisters", num_register_tokens=4, **DINO), (21, 28), (3, 4), 5, "cls", {42: (6, 6)}
    ),
    "dinov3": Vision(of("DINOv3ViT", num_register_tokens=4, **VIT), (21, 28), (3, 4), 5, "cls", {42: (6, 6)}),
    "vit": Vision(of("ViT", **VIT), (28, 28), (4, 4), 1, "cls", {42: (6, 6)}),
    "deit": Vision(of("DeiT", **VIT), (28, 28), (4, 4), 2, "cls", {42: (6, 6)}),
    "clip": Vision(clip, (28, 28), (4, 4), 1, "cls", {42: (6, 6)}, tower="vision_model"),
    "siglip": Vision(siglip, (28, 28), (4, 4), 0, "pooled", {42: (6, 6)}, tower="vision_model"),
    "swin": Vision(of("Swin", **SWIN), (28, 28), (7, 7), 0, "pooled"),
    "dinov3-convnext": Vision(of("DINOv3ConvNext", **STAGES), (64, 96), (2, 3), 1, "pooled", {96: (3, 3)}, 64),
    "convnext": Vision(of("ConvNext", **STAGES), (64, 96), (2, 3), "map", "pooled", {96: (3, 3)}, 64),
    "resnet": Vision(of("ResNet", **RESNET), (64, 96), (2, 3), "map", "pooled", {}, 64),
    "sam": Vision(sam, (32, 32), (4, 4), "map", "mean", {}, 32, "vision_encoder"),
}
each_vision_model = pytest.mark.parametrize("name", VISION)


def image_processor(name: str) -> hf.BaseImageProcessor:
    side = VISION[name].side
    square = {"height": side, "width": side}
    if name == "sam":
        return hf.SamImageProcessor(size={"longest_edge": 32}, pad_size=square)
    return hf.ViTImageProcessor(size=square, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.25, 0.125])


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory) -> Callable[[str], str]:
    def build(name: str) -> str:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(name)
        VISION[name].build().save_pretrained(folder)
        image_processor(name).save_pretrained(folder)
        return str(folder)

    return cache(build)


@pytest.fixture(scope="module")
def vision(vision_folder) -> Callable[..., FrozenEncoder]:
    return cache(lambda name, **options: FrozenEncoder(vision_folder(name), "image", **options))


@pytest.fixture(scope="module")
def own_output(vision_folder) -> Callable:
    """What transformers itself gives for the pixels of a row."""

    def run(name: str):
        model = hf.AutoModel.from_pretrained(vision_folder(name)).eval().requires_grad_(False)
        return model.get_submodule(VISION[name].tower)(pixel_values=pixels(*VISION[name].size))

    return cache(run)


def pixels(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


# Vision


@each_vision_model
def test_an_image_gives_a_grid_of_patches_and_a_summary_of_the_encoders_width(name, vision, images):
    encoder = vision(name)
    features = encoder(encoder.preprocess(images[:3]))
    rows, columns = features["grid"]
    width = encoder.get_embedding_dimension()
    assert features["token_embeddings"].shape == (3, rows * columns, width)
    assert features["cls_token_embeddings"].shape == (3, width)


@each_vision_model
def test_patches_and_summary_are_the_models_own_on_a_grid_of_rows_then_columns(name, vision, own_output):
    row, output = VISION[name], own_output(name)
    hidden = output.last_hidden_state
    patches = hidden.flatten(2).transpose(1, 2) if row.prefix == "map" else hidden[:, row.prefix :]
    features = vision(name)({"pixel_values": pixels(*row.size)})
    summaries = {
        "cls": lambda: hidden[:, 0],
        "pooled": lambda: output.pooler_output.flatten(1),
        "mean": lambda: patches.mean(1),
    }
    assert features["grid"] == row.grid
    torch.testing.assert_close(features["token_embeddings"], patches)
    torch.testing.assert_close(features["cls_token_embeddings"], summaries[row.summary]())
    for line, column in [(0, 0), (0, 1), (1, 0), (1, row.grid[1] - 1)] if row.prefix == "map" else ():
        token = features["token_embeddings"][:, line * row.grid[1] + column]
        torch.testing.assert_close(token, hidden[:, :, line, column])


@pytest.mark.parametrize("name", ["dinov2", "dinov2-registers", "dinov3"])
def test_changing_one_patch_of_a_wide_image_changes_its_token_most(name, vision):
    batch = torch.zeros(13, 3, 21, 28)
    for cell in range(12):
        top, left = 7 * (cell // 4), 7 * (cell % 4)
        batch[cell, :, top : top + 7, left : left + 7] = pixels(7, 7, 1)
    tokens = vision(name)({"pixel_values": batch})["token_embeddings"]
    changes = (tokens[:12] - tokens[12:]).norm(dim=-1)
    assert changes.argmax(1).tolist() == list(range(12))


@pytest.mark.parametrize("name", ["vit", "deit", "clip", "siglip"])
def test_a_model_with_a_fixed_grid_reads_a_wide_image_once_image_size_is_given(name, vision):
    features = vision(name, image_size=28)({"pixel_values": pixels(21, 28)})
    assert features["grid"] == (3, 4) and features["token_embeddings"].shape == (2, 12, 24)


@pytest.mark.parametrize(("name", "image_size"), [(name, size) for name, row in VISION.items() for size in row.larger])
def test_image_size_replaces_the_processors_size_and_is_part_of_the_identity(name, image_size, vision, images):
    encoder, grid = vision(name, image_size=image_size), VISION[name].larger[image_size]
    batch = encoder.preprocess(images[:2])
    features = encoder(batch)
    assert batch["pixel_values"].shape == (2, 3, image_size, image_size)
    assert features["grid"] == grid and features["token_embeddings"].shape[1] == grid[0] * grid[1]
    assert encoder.encoder.preprocessing != vision(name).encoder.preprocessing


def test_a_model_that_reads_one_size_only_refuses_another_with_the_size(vision, images):
    with pytest.raises(ValueError, match=r"image_size=48: this encoder reads one size only"):
        vision("sam", image_size=48)


def test_normalisation_is_the_processors_own(vision):
    batch = vision("dinov2").preprocess([Image.new("RGB", (50, 40), (255, 0, 51))])["pixel_values"]
    expected = [(1 - 0.1) / 0.5, (0 - 0.2) / 0.25, (0.2 - 0.3) / 0.125]
    torch.testing.assert_close(batch, torch.tensor(expected).view(1, 3, 1, 1).expand(1, 3, 28, 28))


def test_preprocessing_is_the_processors_own(vision, vision_folder, images):
    processor = hf.AutoImageProcessor.from_pretrained(vision_folder("sam"))
    expected = processor(images=images[:2], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(vision("sam").preprocess(images[:2])["pixel_values"], expected)


@pytest.fixture
def folder_with(vision_folder, tmp_path) -> Callable[[hf.BaseImageProcessor], str]:
    def build(processor: hf.BaseImageProcessor) -> str:
        hf.AutoModel.from_pretrained(vision_folder("dinov2")).save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        return str(tmp_path)

    return build


def traffic_light(width: int, height: int) -> Image.Image:
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    for channel in range(3):
        picture[:, channel * width // 3 : (channel + 1) * width // 3, channel] = 255
    return Image.fromarray(picture)


@pytest.mark.parametrize("image_size", [None, 42])
def test_a_processor_that_crops_still_crops_the_centre_at_image_size(image_size, folder_with):
    processor = hf.BitImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_mean=[0, 0, 0], image_std=[1, 1, 1]
    )
    encoder = FrozenEncoder(folder_with(processor), image_size=image_size)
    red, green, blue = encoder.preprocess([traffic_light(168, 42)])["pixel_values"][0].mean((1, 2))
    assert green > 0.9 and red < 0.1 and blue < 0.1


@pytest.mark.parametrize("name", ["dinov2", "sam", "convnext", "clip"])
def test_preprocessing_can_be_saved_as_json(name, vision):
    preprocessing = vision(name).get_config_dict()["preprocessing"]
    assert json.loads(json.dumps(preprocessing)) == preprocessing and preprocessing["size"]


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"height": 35, "width": 35}},
        {"image_mean": [0.0, 0.0, 0.0]},
        {"image_std": [1.0, 1.0, 1.0]},
        {"resample": 3},
        {"rescale_factor": 1.0},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_resize": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_preprocessing_is_another_identity(change, folder_with):
    size = {"height": 28, "width": 28}
    settings = {"size": size, "image_mean": [0.1] * 3, "image_std": [0.5] * 3, "resample": 2}
    first = FrozenEncoder(folder_with(hf.ViTImageProcessor(**settings))).get_config_dict()["preprocessing"]
    changed = hf.ViTImageProcessor(**{**settings, **change})
    assert FrozenEncoder(folder_with(changed)).get_config_dict()["preprocessing"] != first


def test_weights_saved_in_half_precision_can_be_used(tmp_path, images):
    VISION["dinov2"].build().half().save_pretrained(tmp_path)
    image_processor("dinov2").save_pretrained(tmp_path)
    model = FreezeAlign([FrozenEncoder(str(tmp_path))], dim=8, device="cpu")
    assert np.isfinite(model.encode(images[:2])).all()


def test_a_model_that_hides_patches_at_random_is_refused_rather_than_read_as_a_smaller_grid(tmp_path, images):
    of("ViTMAE", **VIT)().save_pretrained(tmp_path)
    image_processor("vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"5 tokens|vit_mae|mask"):
        encoder = FrozenEncoder(str(tmp_path))
        encoder(encoder.preprocess(images[:1]))


# Text

BERT_TOKENS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
BERT_LIKE = {"template": "[CLS] $A [SEP]", **BERT_TOKENS}
# As google/siglip and google/siglip2 publish theirs: no attention mask
NO_MASK = {"template": "$A [SEP]", "eos_token": "[SEP]", "pad_token": "[PAD]", "model_input_names": ["input_ids"]}
LEFT = {"template": "$A", "eos_token": "[SEP]", "unk_token": "[UNK]", "padding_side": "left"}


class Text(NamedTuple):
    """A text model with its tokenizer, and what comes of ``SHORT``."""

    build: Callable[[], hf.PreTrainedModel]
    tokenizer: dict
    special: list[int]  # which of the tokens of SHORT are special
    limit: int = 16


TEXTS = {
    "bert": Text(of("Bert", **SHORT_TEXT), BERT_LIKE, [1, 0, 0, 1]),
    "roberta": Text(of("Roberta", **ROBERTA), BERT_LIKE, [1, 0, 0, 1]),
    "mpnet": Text(of("MPNet", **ROBERTA), BERT_LIKE, [1, 0, 0, 1]),
    "xlm-roberta": Text(of("XLMRoberta", **ROBERTA), BERT_LIKE, [1, 0, 0, 1]),
    "xlm-roberta-xl": Text(of("XLMRobertaXL", **ROBERTA), BERT_LIKE, [1, 0, 0, 1]),
    "data2vec": Text(of("Data2VecText", **ROBERTA), BERT_LIKE, [1, 0, 0, 1]),
    "clip": Text(clip, BERT_LIKE, [1, 0, 0, 1]),
    "t5": Text(
        of("T5", decoder_start_token_id=0, **T5),
        {"template": "$A [SEP]", **BERT_TOKENS, "model_max_length": 512},
        [0, 0, 1],
        512,
    ),
    "gpt2": Text(of("GPT2", **GPT2), {"template": "$A", "eos_token": "[SEP]", "unk_token": "[SEP]"}, [0, 0]),
    "llama": Text(of("Llama", num_key_value_heads=2, **SHORT_TEXT), LEFT, [0, 0]),
    "siglip": Text(siglip, NO_MASK, [0, 0, *[1] * 14]),
}
each_text_model = pytest.mark.parametrize("name", TEXTS)
WORDS = ["a", "red", "green", "blue", "apple", *map(str, range(40))]
SHORT, LONG = "a red", "a red apple 1 2 3"


def save_tokenizer(folder: Path, template: str, model_max_length: int | None = None, **config) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3}
    vocabulary = ids | {word: index for index, word in enumerate(WORDS, len(ids))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = [(token, index) for token, index in ids.items() if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    defaults = {"model_input_names": ["input_ids", "attention_mask"]}
    limit = {"model_max_length": model_max_length} if model_max_length else {}
    path.write_text(json.dumps({**json.loads(path.read_text()), **defaults, **limit, **config}))


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> Callable[..., str]:
    def build(name: str, **config) -> str:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(name)
        TEXTS[name].build().save_pretrained(folder)
        save_tokenizer(folder, **{**TEXTS[name].tokenizer, **config})
        return str(folder)

    return build


@pytest.fixture(scope="module")
def text(text_folder) -> Callable[..., FrozenEncoder]:
    folder = cache(text_folder)
    return cache(lambda name, **options: FrozenEncoder(folder(name), "text", **options))


@pytest.fixture
def six_tokens(text_folder) -> FrozenEncoder:
    return FrozenEncoder(text_folder("bert"), max_length=6)


def read(encoder: FrozenEncoder, *texts: str) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return encoder(encoder.preprocess(list(texts)))


@each_text_model
def test_a_text_gives_tokens_of_the_encoders_width_and_their_masks(name, text):
    encoder = text(name)
    features = read(encoder, SHORT, LONG)
    tokens = features["token_embeddings"]
    assert tokens.shape[::2] == (2, encoder.get_embedding_dimension())
    assert features["attention_mask"].shape == features["special_tokens_mask"].shape == tokens.shape[:2]
    assert features["cls_token_embeddings"].shape == tokens.shape[::2]


@each_text_model
def test_what_a_text_gives_does_not_depend_on_the_batch_it_is_in(name, text):
    encoder = text(name)
    alone, together = read(encoder, SHORT), read(encoder, LONG, SHORT)
    tokens = [features["token_embeddings"][-1][features["attention_mask"][-1].bool()] for features in (alone, together)]
    torch.testing.assert_close(*tokens, atol=1e-5, rtol=1e-4)
    first = [features["cls_token_embeddings"][-1] for features in (alone, together)]
    torch.testing.assert_close(*first, atol=1e-5, rtol=1e-4)


@each_text_model
def test_special_tokens_are_marked_and_words_are_not(name, text):
    assert read(text(name), SHORT)["special_tokens_mask"].int().tolist() == [TEXTS[name].special]


@each_text_model
def test_a_long_text_is_cut_to_the_positions_the_model_has(name, text):
    encoder = text(name)
    assert encoder.max_seq_length == TEXTS[name].limit
    assert read(encoder, "a " * 600)["token_embeddings"].shape[1] == TEXTS[name].limit


@pytest.mark.parametrize(
    ("name", "ids"),
    [("bert", [2, 4, 5, 3]), ("siglip", [4, 5, 3, *[1] * 13])],  # SigLIP was trained on full texts, without a mask
)
def test_tokens_are_the_models_last_hidden_state(name, ids, text_folder):
    folder = text_folder(name)
    model = hf.AutoModel.from_pretrained(folder).eval()
    hidden = getattr(model, "text_model", model)(input_ids=torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(read(FrozenEncoder(folder, "text"), "a red")["token_embeddings"], hidden)


def test_padding_counts_as_special_and_an_unknown_word_as_a_word(text):
    features = read(text("bert"), LONG, SHORT)
    padding = features["attention_mask"] == 0
    assert padding.any() and features["special_tokens_mask"][padding].all()
    assert read(text("bert"), "a zebra")["special_tokens_mask"].int().tolist() == [[1, 0, 0, 1]]


def test_a_decoder_without_padding_token_reads_texts_of_different_lengths(text):
    assert read(text("gpt2"), SHORT, LONG)["attention_mask"].sum(1).tolist() == [2, 6]


def test_of_an_encoder_decoder_only_the_encoder_is_used(text_folder):
    folder = text_folder("t5")
    model = hf.T5EncoderModel.from_pretrained(folder).eval()
    encoder = FrozenEncoder(folder)
    hidden = model(input_ids=torch.tensor([[4, 5, 3]])).last_hidden_state
    torch.testing.assert_close(read(encoder, "a red")["token_embeddings"], hidden)
    assert encoder.num_parameters() == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_each_tower_of_a_two_tower_model_is_used_without_the_other(name, text, vision, vision_folder):
    both = hf.AutoModel.from_pretrained(vision_folder(name))
    towers = {"image": both.vision_model, "text": both.text_model}
    sizes = {modality: sum(p.numel() for p in tower.parameters()) for modality, tower in towers.items()}
    assert (vision(name).num_parameters(), text(name).num_parameters()) == (sizes["image"], sizes["text"])


@pytest.mark.parametrize(
    ("name", "stated", "asked", "limit"),
    [
        ("bert", 10, None, 10),  # the stricter of tokenizer and positions
        ("bert", 512, None, 16),
        ("bert", None, None, 16),
        ("bert", 8, 12, 12),  # what is asked for raises the tokenizer's
        ("bert", None, 5, 5),
        ("t5", None, None, None),  # neither states one
    ],
)
def test_the_limit_of_a_text(name, stated, asked, limit, text_folder):
    encoder = FrozenEncoder(text_folder(name, model_max_length=stated), max_length=asked)
    assert encoder.max_seq_length == encoder.encoder.preprocessing["max_length"] == limit
    assert read(encoder, "a " * 300)["token_embeddings"].shape[1] == (limit or 301)


def test_max_length_counts_special_tokens_and_keeps_them(six_tokens):
    with pytest.warns(UserWarning, match="cut"):
        batch = six_tokens.preprocess(["a red green blue apple"])
    assert batch["input_ids"].tolist() == [[2, 4, 5, 6, 7, 3]]


def test_a_cut_text_warns_once_with_how_long_it_is_and_what_to_do(six_tokens):
    with pytest.warns(UserWarning, match=r"1 of 2 texts.*cut to the encoder's 6 tokens.*longest has 22.*max_length="):
        six_tokens.preprocess([SHORT, "a " * 20])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        six_tokens.preprocess(["a " * 30])


def test_a_text_that_just_fits_does_not_warn_and_the_first_cut_after_it_does(six_tokens):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        six_tokens.preprocess(["a red green blue", "a"])
    with pytest.warns(UserWarning, match="1 of 1 texts"):
        six_tokens.preprocess(["a red green blue apple"])
