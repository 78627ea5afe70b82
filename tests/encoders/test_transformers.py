from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from freezealign import FreezeAlign, FrozenEncoder

BODY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**BODY, "intermediate_size": 32, "image_size": 28, "patch_size": 7}
TEXT = {**BODY, "intermediate_size": 32, "vocab_size": 64}
STAGES = {"hidden_sizes": [4, 6, 8, 12], "depths": [1, 1, 1, 1]}
DINO = {key: VIT[key] for key in (*BODY, "image_size", "patch_size")}

WORDS = ["a", "red", "green", "blue", "apple", *map(str, range(40))]
SHORT, LONG = "a red", "a red apple 1 2 3"


def sam() -> transformers.PreTrainedModel:
    vision = {**BODY, "image_size": 32, "patch_size": 8, "output_channels": 12, "window_size": 2, "num_pos_feats": 6}
    vision |= {"global_attn_indexes": [1], "mlp_dim": 32}
    prompt = {"hidden_size": 12, "image_size": 32, "patch_size": 8}
    mask = {"hidden_size": 12, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 12}
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask)
    return transformers.SamModel(config)


def clip() -> transformers.PreTrainedModel:
    text = {**TEXT, "max_position_embeddings": 16, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=VIT, text_config=text, projection_dim=12))


def siglip() -> transformers.PreTrainedModel:
    text = {**TEXT, "max_position_embeddings": 16}
    return transformers.SiglipModel(transformers.SiglipConfig(vision_config=VIT, text_config=text))


VISION_MODELS: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**DINO)),
    "dinov2-registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(num_register_tokens=4, **DINO)
    ),
    "dinov3": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(num_register_tokens=4, **VIT)),
    "dinov3-convnext": lambda: transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(**STAGES)),
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**VIT)),
    "deit": lambda: transformers.DeiTModel(transformers.DeiTConfig(**VIT)),
    "convnext": lambda: transformers.ConvNextModel(transformers.ConvNextConfig(**STAGES)),
    "resnet": lambda: transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=8, layer_type="basic", **STAGES)
    ),
    "swin": lambda: transformers.SwinModel(
        transformers.SwinConfig(
            embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=7, image_size=28, patch_size=2
        )
    ),
    "sam": sam,
    "clip": clip,
    "siglip": siglip,
}
VITS_WITH_CLS = ["dinov2", "dinov2-registers", "dinov3", "vit", "deit", "clip"]
PREFIXES = {"dinov2": 1, "dinov2-registers": 5, "dinov3": 5, "vit": 1, "deit": 2, "clip": 1, "siglip": 0}


def image_processor(name: str) -> transformers.BaseImageProcessor:
    if name == "sam":
        square = {"height": 32, "width": 32}
        return transformers.SamImageProcessor(size={"longest_edge": 32}, pad_size=square)
    side = 64 if name in ("convnext", "dinov3-convnext", "resnet") else 28
    size = {"height": side, "width": side}
    return transformers.ViTImageProcessor(size=size, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.25, 0.125])


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory) -> Callable[[str], str]:
    folders: dict[str, str] = {}

    def build(name: str) -> str:
        if name not in folders:
            torch.manual_seed(len(folders))
            folder = tmp_path_factory.mktemp(name)
            VISION_MODELS[name]().save_pretrained(folder)
            image_processor(name).save_pretrained(folder)
            folders[name] = str(folder)
        return folders[name]

    return build


@pytest.fixture(scope="module")
def vision(vision_folder) -> Callable[..., FrozenEncoder]:
    return cache(lambda name, **options: FrozenEncoder(vision_folder(name), "image", **options))


@pytest.fixture(scope="module")
def reference_model(vision_folder) -> Callable[[str], torch.nn.Module]:
    towers = {"clip": "vision_model", "siglip": "vision_model", "sam": "vision_encoder"}

    def load(name: str) -> torch.nn.Module:
        model = transformers.AutoModel.from_pretrained(vision_folder(name)).eval().requires_grad_(False)
        return model.get_submodule(towers.get(name, ""))

    return cache(load)


def pixels(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def size_of(name: str) -> tuple[int, int]:
    if name in ("convnext", "dinov3-convnext", "resnet"):
        return 64, 96
    return {"sam": (32, 32), "dinov2": (21, 28), "dinov2-registers": (21, 28), "dinov3": (21, 28)}.get(name, (28, 28))


# Vision


@pytest.mark.parametrize("name", VISION_MODELS)
def test_an_image_gives_a_grid_of_patches_and_a_summary_of_the_encoders_width(name, vision, images):
    encoder = vision(name)
    features = encoder(encoder.preprocess(images[:3]))
    rows, columns = features["grid"]
    width = encoder.get_embedding_dimension()
    assert features["token_embeddings"].shape == (3, rows * columns, width)
    assert features["cls_token_embeddings"].shape == (3, width)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("dinov2", (3, 4)),
        ("dinov3", (3, 4)),
        ("dinov3-convnext", (2, 3)),
        ("convnext", (2, 3)),
        ("resnet", (2, 3)),
        ("vit", (4, 4)),
        ("swin", (7, 7)),
        ("sam", (4, 4)),
        ("siglip", (4, 4)),
    ],
)
def test_the_grid_is_rows_then_columns(name, grid, vision):
    features = vision(name)({"pixel_values": pixels(*size_of(name))})
    assert features["grid"] == grid


@pytest.mark.parametrize("name", PREFIXES)
def test_patches_are_the_last_hidden_state_without_cls_registers_and_distillation_token(name, vision, reference_model):
    batch = pixels(*size_of(name))
    hidden = reference_model(name)(pixel_values=batch).last_hidden_state
    patches = vision(name)({"pixel_values": batch})["token_embeddings"]
    torch.testing.assert_close(patches, hidden[:, PREFIXES[name] :])


@pytest.mark.parametrize("name", VITS_WITH_CLS)
def test_the_summary_of_a_vit_is_its_cls_token(name, vision, reference_model):
    batch = pixels(*size_of(name))
    hidden = reference_model(name)(pixel_values=batch).last_hidden_state
    torch.testing.assert_close(vision(name)({"pixel_values": batch})["cls_token_embeddings"], hidden[:, 0])


@pytest.mark.parametrize("name", ["siglip", "convnext", "dinov3-convnext", "resnet", "swin"])
def test_the_summary_of_a_model_without_cls_is_its_own_pooled_output(name, vision, reference_model):
    batch = pixels(*size_of(name))
    pooled = reference_model(name)(pixel_values=batch).pooler_output.flatten(1)
    torch.testing.assert_close(vision(name)({"pixel_values": batch})["cls_token_embeddings"], pooled)


def test_the_summary_of_a_model_that_pools_nothing_is_the_mean_of_its_patches(vision):
    features = vision("sam")({"pixel_values": pixels(32, 32)})
    torch.testing.assert_close(features["cls_token_embeddings"], features["token_embeddings"].mean(1))


@pytest.mark.parametrize("name", ["convnext", "resnet", "sam"])
def test_a_feature_map_is_read_row_by_row(name, vision, reference_model):
    batch = pixels(*size_of(name))
    feature_map = reference_model(name)(pixel_values=batch).last_hidden_state
    features = vision(name)({"pixel_values": batch})
    _, columns = features["grid"]
    for row, column in [(0, 0), (0, 1), (1, 0), (1, columns - 1)]:
        token = features["token_embeddings"][:, row * columns + column]
        torch.testing.assert_close(token, feature_map[:, :, row, column])


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


@pytest.mark.parametrize(
    ("name", "image_size", "grid"),
    [
        ("dinov2", 42, (6, 6)),
        ("dinov2", 30, (4, 4)),
        ("dinov3", 42, (6, 6)),
        ("vit", 42, (6, 6)),
        ("deit", 42, (6, 6)),
        ("clip", 42, (6, 6)),
        ("siglip", 42, (6, 6)),
        ("convnext", 96, (3, 3)),
        ("dinov3-convnext", 96, (3, 3)),
    ],
)
def test_image_size_replaces_the_processors_size(name, image_size, grid, vision, images):
    encoder = vision(name, image_size=image_size)
    batch = encoder.preprocess(images[:2])
    features = encoder(batch)
    assert batch["pixel_values"].shape == (2, 3, image_size, image_size)
    assert features["grid"] == grid and features["token_embeddings"].shape[1] == grid[0] * grid[1]


def test_a_model_that_reads_one_size_only_refuses_another_with_the_size(vision, images):
    with pytest.raises(ValueError, match=r"image_size|48"):
        encoder = vision("sam", image_size=48)
        encoder(encoder.preprocess(images[:1]))


def test_normalisation_is_the_processors_own(vision):
    batch = vision("dinov2").preprocess([Image.new("RGB", (50, 40), (255, 0, 51))])["pixel_values"]
    expected = [(1 - 0.1) / 0.5, (0 - 0.2) / 0.25, (0.2 - 0.3) / 0.125]
    torch.testing.assert_close(batch, torch.tensor(expected).view(1, 3, 1, 1).expand(1, 3, 28, 28))


def test_preprocessing_is_the_processors_own(vision, vision_folder, images):
    processor = transformers.AutoImageProcessor.from_pretrained(vision_folder("sam"))
    expected = processor(images=images[:2], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(vision("sam").preprocess(images[:2])["pixel_values"], expected)


@pytest.fixture
def folder_with(vision_folder, tmp_path) -> Callable[[transformers.BaseImageProcessor], str]:
    def build(processor: transformers.BaseImageProcessor) -> str:
        model = transformers.AutoModel.from_pretrained(vision_folder("dinov2"))
        model.save_pretrained(tmp_path)
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
    processor = transformers.BitImageProcessor(
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
    first = FrozenEncoder(folder_with(transformers.ViTImageProcessor(**settings))).get_config_dict()["preprocessing"]
    changed = transformers.ViTImageProcessor(**{**settings, **change})
    assert FrozenEncoder(folder_with(changed)).get_config_dict()["preprocessing"] != first


def test_image_size_is_part_of_the_identity(vision):
    assert vision("dinov2", image_size=42).encoder.preprocessing != vision("dinov2").encoder.preprocessing


def test_weights_saved_in_half_precision_can_be_used(tmp_path, images):
    transformers.Dinov2Model(transformers.Dinov2Config(**DINO)).half().save_pretrained(tmp_path)
    image_processor("dinov2").save_pretrained(tmp_path)
    model = FreezeAlign([FrozenEncoder(str(tmp_path))], dim=8, device="cpu")
    assert np.isfinite(model.encode(images[:2])).all()


def test_a_model_that_hides_patches_at_random_is_refused_rather_than_read_as_a_smaller_grid(tmp_path, images):
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**VIT)).save_pretrained(tmp_path)
    image_processor("vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"5 tokens|vit_mae|mask"):
        encoder = FrozenEncoder(str(tmp_path))
        encoder(encoder.preprocess(images[:1]))


# Text

TEXT_MODELS: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(max_position_embeddings=16, **TEXT)),
    "roberta": lambda: transformers.RobertaModel(
        transformers.RobertaConfig(max_position_embeddings=18, pad_token_id=1, **TEXT)
    ),
    "mpnet": lambda: transformers.MPNetModel(
        transformers.MPNetConfig(max_position_embeddings=18, pad_token_id=1, **TEXT)
    ),
    "xlm-roberta": lambda: transformers.XLMRobertaModel(
        transformers.XLMRobertaConfig(max_position_embeddings=18, pad_token_id=1, **TEXT)
    ),
    "xlm-roberta-xl": lambda: transformers.XLMRobertaXLModel(
        transformers.XLMRobertaXLConfig(max_position_embeddings=18, pad_token_id=1, **TEXT)
    ),
    "data2vec": lambda: transformers.Data2VecTextModel(
        transformers.Data2VecTextConfig(max_position_embeddings=18, pad_token_id=1, **TEXT)
    ),
    "t5": lambda: transformers.T5Model(
        transformers.T5Config(
            vocab_size=64, d_model=24, d_kv=12, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    ),
    "gpt2": lambda: transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=24, n_layer=2, n_head=2)
    ),
    "llama": lambda: transformers.LlamaModel(
        transformers.LlamaConfig(max_position_embeddings=16, num_key_value_heads=2, **TEXT)
    ),
    "clip": clip,
    "siglip": siglip,
}
ROBERTAS = ["roberta", "mpnet", "xlm-roberta", "xlm-roberta-xl", "data2vec"]
BERT_TOKENS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
TOKENIZERS = {
    "bert": {"template": "[CLS] $A [SEP]", **BERT_TOKENS},
    **{name: {"template": "[CLS] $A [SEP]", **BERT_TOKENS} for name in ROBERTAS},
    "t5": {"template": "$A [SEP]", **BERT_TOKENS, "model_max_length": 512},
    "gpt2": {"template": "$A", "eos_token": "[SEP]", "unk_token": "[SEP]"},
    "llama": {"template": "$A", "eos_token": "[SEP]", "unk_token": "[UNK]", "padding_side": "left"},
    "clip": {"template": "[CLS] $A [SEP]", **BERT_TOKENS},
    # As google/siglip and google/siglip2 publish theirs: no attention mask
    "siglip": {"template": "$A [SEP]", "eos_token": "[SEP]", "pad_token": "[PAD]", "model_input_names": ["input_ids"]},
}


def save_tokenizer(folder: Path, template: str, model_max_length: int | None = None, **config) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3}
    vocabulary = ids | {word: index for index, word in enumerate(WORDS, len(ids))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = [(token, index) for token, index in ids.items() if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    defaults = {"model_input_names": ["input_ids", "attention_mask"]}
    limit = {"model_max_length": model_max_length} if model_max_length else {}
    path.write_text(json.dumps({**json.loads(path.read_text()), **defaults, **limit, **config}))


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> Callable[..., str]:
    def build(name: str, **config) -> str:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(name)
        TEXT_MODELS[name]().save_pretrained(folder)
        save_tokenizer(folder, **{**TOKENIZERS[name], **config})
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


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_text_gives_tokens_of_the_encoders_width_and_their_masks(name, text):
    encoder = text(name)
    features = read(encoder, SHORT, LONG)
    tokens = features["token_embeddings"]
    assert tokens.shape[::2] == (2, encoder.get_embedding_dimension())
    assert features["attention_mask"].shape == features["special_tokens_mask"].shape == tokens.shape[:2]
    assert features["cls_token_embeddings"].shape == tokens.shape[::2]


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_the_tokens_of_a_text_do_not_depend_on_the_batch_it_is_in(name, text):
    encoder = text(name)
    alone, together = read(encoder, SHORT), read(encoder, LONG, SHORT)
    tokens = [features["token_embeddings"][-1][features["attention_mask"][-1].bool()] for features in (alone, together)]
    torch.testing.assert_close(*tokens, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_the_first_token_of_a_text_does_not_depend_on_the_batch_it_is_in(name, text):
    encoder = text(name)
    alone, together = read(encoder, SHORT), read(encoder, LONG, SHORT)
    torch.testing.assert_close(
        together["cls_token_embeddings"][-1], alone["cls_token_embeddings"][-1], atol=1e-5, rtol=1e-4
    )


def test_tokens_are_the_models_last_hidden_state(text_folder):
    folder = text_folder("bert")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    hidden = model(input_ids=torch.tensor([[2, 4, 5, 3]])).last_hidden_state
    torch.testing.assert_close(read(FrozenEncoder(folder), "a red")["token_embeddings"], hidden)


@pytest.mark.parametrize(
    ("name", "special"),
    [("bert", [1, 0, 0, 1]), ("roberta", [1, 0, 0, 1]), ("t5", [0, 0, 1]), ("gpt2", [0, 0]), ("clip", [1, 0, 0, 1])],
)
def test_special_tokens_are_marked_and_words_are_not(name, special, text):
    assert read(text(name), SHORT)["special_tokens_mask"].int().tolist() == [special]


def test_padding_counts_as_special(text):
    features = read(text("bert"), LONG, SHORT)
    padding = features["attention_mask"] == 0
    assert padding.any() and features["special_tokens_mask"][padding].all()


def test_an_unknown_word_is_a_word(text):
    assert read(text("bert"), "a zebra")["special_tokens_mask"].int().tolist() == [[1, 0, 0, 1]]


def test_a_decoder_without_padding_token_reads_texts_of_different_lengths(text):
    features = read(text("gpt2"), SHORT, LONG)
    assert features["attention_mask"].sum(1).tolist() == [2, 6]


def test_of_an_encoder_decoder_only_the_encoder_is_used(text_folder):
    folder = text_folder("t5")
    model = transformers.T5EncoderModel.from_pretrained(folder).eval()
    encoder = FrozenEncoder(folder)
    hidden = model(input_ids=torch.tensor([[4, 5, 3]])).last_hidden_state
    torch.testing.assert_close(read(encoder, "a red")["token_embeddings"], hidden)
    assert encoder.num_parameters() == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_each_tower_of_a_two_tower_model_is_used_without_the_other(name, text, vision, vision_folder):
    both = transformers.AutoModel.from_pretrained(vision_folder(name))
    towers = {"image": both.vision_model, "text": both.text_model}
    sizes = {modality: sum(p.numel() for p in tower.parameters()) for modality, tower in towers.items()}
    assert (vision(name).num_parameters(), text(name).num_parameters()) == (sizes["image"], sizes["text"])


@pytest.mark.parametrize("name", ["bert", "gpt2", "clip", *ROBERTAS])
def test_a_long_text_is_cut_to_the_positions_the_model_has(name, text):
    encoder = text(name)
    assert read(encoder, "a " * 100)["token_embeddings"].shape[1] == encoder.max_seq_length == 16


@pytest.mark.parametrize(("stated", "expected"), [(10, 10), (512, 16), (None, 16)])
def test_the_stricter_of_tokenizer_and_positions_is_the_limit(stated, expected, text_folder):
    assert FrozenEncoder(text_folder("bert", model_max_length=stated)).max_seq_length == expected


def test_a_model_without_any_limit_reads_long_texts(text_folder):
    features = read(FrozenEncoder(text_folder("t5", model_max_length=None)), "a " * 300)
    assert features["token_embeddings"].shape[1] == 301


def test_max_length_counts_special_tokens_and_keeps_them(six_tokens):
    with pytest.warns(UserWarning, match="cut"):
        batch = six_tokens.preprocess(["a red green blue apple"])
    assert batch["input_ids"].tolist() == [[2, 4, 5, 6, 7, 3]] and six_tokens.max_seq_length == 6


def test_max_length_is_part_of_the_identity(text):
    assert text("bert", max_length=5).encoder.preprocessing != text("bert").encoder.preprocessing


def test_max_length_raises_the_limit_of_the_tokenizer(text_folder):
    encoder = FrozenEncoder(text_folder("bert", model_max_length=8), max_length=12)
    assert read(encoder, "a " * 100)["token_embeddings"].shape[1] == 12


def test_a_cut_text_warns_once_with_how_long_it_is_and_what_to_do(six_tokens):
    with pytest.warns(UserWarning, match=r"1 of 2 texts.*cut to the encoder's 6 tokens.*longest has 22.*max_length="):
        six_tokens.preprocess([SHORT, "a " * 20])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        six_tokens.preprocess(["a " * 30])


def test_a_text_that_just_fits_does_not_warn(six_tokens):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        six_tokens.preprocess(["a red green blue", "a"])


def test_the_first_cut_warns_even_after_texts_that_fit(six_tokens):
    six_tokens.preprocess(["a red green blue"])
    with pytest.warns(UserWarning, match="1 of 1 texts"):
        six_tokens.preprocess(["a red green blue apple"])
