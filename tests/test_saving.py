"""A saved model: complete, small, exact, and harmless whoever wrote the folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as parse_tensors
from safetensors.torch import load_file, save_file

from freezealign import FreezeAlign, FrozenEncoder, LogitScale, Pooling, ProjectionHead, TokenProjector
from freezealign.modules import Module


def edit(path: Path, **changes) -> None:
    """Change keys of a JSON file; ``None`` removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that is about to be overwritten: a copy, not a map of it."""
    return parse_tensors(path.read_bytes())


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def load(folder: Path, **options) -> FreezeAlign:
    return FreezeAlign.from_pretrained(folder, device="cpu", **options)


@pytest.fixture(scope="module")
def original(dinov2_folder, bert_folder, tmp_path_factory) -> Path:
    """A saved model; tests of this file that use it leave it as it is."""
    model = FreezeAlign({"image": dinov2_folder, "text": bert_folder}, dim=16, seed=0, device="cpu")
    folder = tmp_path_factory.mktemp("original") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def saved(original, tmp_path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def folder_of(saved: Path, tower: str, kind: str) -> Path:
    router = json.loads((saved / "router_config.json").read_text())
    names = [name for name in router["structure"][tower] if router["types"][name].endswith(kind)]
    return saved / names[0]


# There and back


def test_embeddings_survive_saving_exactly(model, images, texts, tmp_path):
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).encode([*images, *texts]), model.encode([*images, *texts]))


def test_trained_blocks_and_temperature_survive_saving(model, pairs, images, texts, tmp_path):
    model.fit(pairs, epochs=2, batch_size=6, show_progress_bar=False)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    np.testing.assert_array_equal(loaded.encode([*images, *texts]), model.encode([*images, *texts]))
    assert loaded.logit_scale.temperature.item() == model.logit_scale.temperature.item() != LogitScale().temperature


def test_loaded_model_can_be_saved_again(saved, texts, tmp_path):
    first = load(saved)
    first.save_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(load(tmp_path / "again").encode(texts), first.encode(texts))


def test_loaded_model_can_be_trained(saved, pairs):
    loaded = load(saved)
    before = loaded.encode(pairs[0][1])
    loaded.fit(pairs, epochs=1, batch_size=6, show_progress_bar=False)
    assert not np.allclose(loaded.encode(pairs[0][1]), before)


def test_loaded_model_is_ready_to_encode(saved):
    assert not load(saved).training


def test_another_valid_setting_or_bit_is_refused_unless_it_is_meant(saved):
    told = saved / "config_freezealign.json"
    assert set(json.loads(told.read_text())["files"]) == {
        str(path.relative_to(saved))
        for path in (saved / "router_config.json", *saved.glob("*_*_*/*"), *saved.glob("logit_scale/*"))
    }
    weights = folder_of(saved, "text", "TokenProjector") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{weights.parent.name}/model\.safetensors' is not as it was saved, by its SHA"
    ):
        load(saved)
    edit(told, files={})
    load(saved)


def test_folder_can_be_moved(saved, texts, tmp_path):
    expected = load(saved).encode(texts)
    moved = saved.rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(load(moved).encode(texts), expected)


def test_every_kind_of_block_survives_saving(dinov2_folder, bert_folder, images, texts, tmp_path):
    photo = [
        FrozenEncoder(dinov2_folder),
        TokenProjector(24, 8, kind="linear", cls=True, dropout=0.3),
        Pooling("cls"),
        ProjectionHead(8, 8, kind="identity"),
    ]
    caption = [
        FrozenEncoder(bert_folder, max_length=9),
        TokenProjector(20, 20, kind="identity"),
        Pooling("max"),
        ProjectionHead(20, 8, kind="linear+mlp"),
    ]
    scale = LogitScale(0.3, 0.1, 0.3)
    model = FreezeAlign({"photo": photo, "caption": caption}, logit_scale=scale, device="cpu")
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    short = [text for text in texts if len(text.split()) < 7]
    np.testing.assert_array_equal(loaded.encode([*images, *short]), model.encode([*images, *short]))
    assert [repr(block) for name in loaded.towers for block in loaded.tower(name)] == [
        repr(block) for name in model.towers for block in model.tower(name)
    ]
    assert (loaded.logit_scale.minimum, loaded.logit_scale.maximum) == (0.1, 0.3)


def test_towers_of_one_encoder_keep_their_own_blocks(dinov2_folder, images, tmp_path):
    model = FreezeAlign({"left": FrozenEncoder(dinov2_folder), "right": FrozenEncoder(dinov2_folder)}, dim=8)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    for name in ("left", "right"):
        np.testing.assert_array_equal(loaded.encode(images, modality=name), model.encode(images, modality=name))


def test_saving_over_an_older_model_replaces_it(saved, callable_model):
    small = FreezeAlign({"text": load(saved).encoders["text"]}, dim=4, device="cpu")
    small.save_pretrained(saved)
    assert load(saved).modalities == ["text"]


def test_block_that_could_not_be_loaded_is_not_saved(bert_folder, tmp_path):
    class Negate(Module):
        def forward(self, features):
            return {**features, "sentence_embedding": -features["sentence_embedding"]}

    model = FreezeAlign({"text": [FrozenEncoder(bert_folder), Pooling("mean"), Negate()]}, device="cpu")
    with pytest.raises((TypeError, ValueError), match="Negate"):
        model.save_pretrained(tmp_path / "model")


# What is in the folder


def test_folder_holds_only_json_safetensors_and_markdown(original):
    assert {path.suffix for path in files(original)} == {".json", ".safetensors", ".md"}


def test_folder_holds_exactly_the_trained_numbers(original):
    weights = [path for path in files(original) if path.suffix == ".safetensors"]
    numbers = sum(tensor.numel() for path in weights for tensor in read_tensors(path).values())
    assert numbers == load(original).num_parameters(only_trainable=True)


def test_folder_is_small(original, dinov2_folder):
    assert sum(path.stat().st_size for path in files(original)) < 60_000
    assert Path(dinov2_folder, "model.safetensors").stat().st_size > 60_000


def test_folder_has_sentence_transformers_layout(original):
    modules = json.loads((original / "modules.json").read_text())
    assert [entry["type"].rpartition(".")[2] for entry in modules] == ["Router", "Normalize"]
    router = json.loads((original / "router_config.json").read_text())
    assert list(router["structure"]) == ["image", "text"]
    assert all((original / name).is_dir() for name in router["types"])


# Folders that are incomplete, damaged or hostile


def test_every_file_but_the_card_is_needed(original, tmp_path):
    ours = [path.relative_to(original) for path in files(original) if path.name != "README.md"]
    others = {Path("modules.json"), Path("config_sentence_transformers.json"), Path("1_Normalize/config.json")}
    for number, name in enumerate(path for path in ours if path not in others):
        folder = Path(shutil.copytree(original, tmp_path / str(number)))
        (folder / name).unlink()
        with pytest.raises(ValueError, match=re.escape(name.name)):
            load(folder)


@pytest.mark.parametrize("content", ["{", "", "\udcff", "[]", "{}", "3", "null"])
def test_every_damaged_json_file_is_named(original, tmp_path, content):
    ignored = {"modules.json", "config_sentence_transformers.json", "1_Normalize/config.json"}
    names = [path.relative_to(original).as_posix() for path in files(original) if path.suffix == ".json"]
    wrong = []
    for number, name in enumerate(name for name in names if name not in ignored):
        if content == "{}" and "Pooling" in name:
            continue  # its defaults are a complete configuration
        if content == "{}" and name.startswith("logit_scale"):
            continue
        folder = Path(shutil.copytree(original, tmp_path / str(number)))
        (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
        try:
            load(folder)
        except ValueError as error:
            if str(folder) not in str(error):
                wrong.append(f"{name}: {error}")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        else:
            wrong.append(f"{name}: loaded")
    assert wrong == []


def test_damaged_safetensors_are_named(saved):
    path = folder_of(saved, "text", "ProjectionHead") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"ProjectionHead/model\.safetensors: not a readable safetensors file"):
        load(saved)


def test_pickle_in_the_place_of_safetensors_is_not_read(saved):
    path = folder_of(saved, "text", "ProjectionHead") / "model.safetensors"
    torch.save(read_tensors(path), path)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load(saved)


def test_pickle_beside_missing_safetensors_is_not_read(saved):
    path = folder_of(saved, "text", "ProjectionHead") / "model.safetensors"
    torch.save(read_tensors(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    with pytest.raises(ValueError, match=r"'model\.safetensors' is missing"):
        load(saved)


def test_tensor_of_another_shape_is_named_with_both_shapes(saved):
    path = folder_of(saved, "text", "ProjectionHead") / "model.safetensors"
    tensors = read_tensors(path)
    save_file({**tensors, "projection.norm.bias": torch.zeros(17)}, path)
    with pytest.raises(ValueError, match=r"projection\.norm\.bias.*\(17,\).*\(16,\)"):
        load(saved)


def test_missing_and_unexpected_tensors_are_named(saved):
    path = folder_of(saved, "text", "ProjectionHead") / "model.safetensors"
    tensors = read_tensors(path)
    tensors["surprise"] = tensors.pop("projection.norm.bias")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"missing.*projection\.norm\.bias.*unexpected.*surprise"):
        load(saved)


def test_temperature_of_another_shape_is_refused(saved):
    save_file({"temperature": torch.full((3,), 0.07)}, saved / "logit_scale" / "model.safetensors")
    with pytest.raises(ValueError, match="temperature"):
        load(saved)


@pytest.mark.parametrize("kind", ["os.system", "torch.nn.Linear", "freezealign.Module", "FrozenEncoder"])
def test_class_that_is_not_ours_is_refused(saved, kind):
    router = json.loads((saved / "router_config.json").read_text())
    name = folder_of(saved, "text", "Pooling").name
    edit(saved / "router_config.json", types={**router["types"], name: kind})
    with pytest.raises(ValueError, match=rf"'{re.escape(kind)}', which is none of ours"):
        load(saved)


def test_class_named_in_a_file_is_never_imported(saved, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    router = json.loads((saved / "router_config.json").read_text())
    name = folder_of(saved, "text", "Pooling").name
    edit(saved / "router_config.json", types={**router["types"], name: "trap.Pooling"})
    with pytest.raises(ValueError, match="none of ours"):
        load(saved)


@pytest.mark.parametrize("path", ["../evil", "/evil", "image_1_TokenProjector/../../evil"])
def test_path_out_of_the_folder_is_refused(saved, path):
    shutil.copytree(folder_of(saved, "text", "Pooling"), saved.parent / "evil")
    router = json.loads((saved / "router_config.json").read_text())
    name = folder_of(saved, "text", "Pooling").name
    structure = {**router["structure"], "text": [path if n == name else n for n in router["structure"]["text"]]}
    edit(
        saved / "router_config.json",
        structure=structure,
        types={**router["types"], path: "freezealign.Pooling"},
    )
    with pytest.raises(ValueError, match="points outside the model folder"):
        load(saved)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_linked_block_outside_the_folder_is_refused(saved, tower):
    block = folder_of(saved, tower, "Pooling")
    block.rename(saved.parent / "evil")
    block.symlink_to(saved.parent / "evil")
    with pytest.raises(ValueError, match="points outside the model folder"):
        load(saved)


def test_linked_temperature_outside_the_folder_is_refused(saved):
    (saved / "logit_scale").rename(saved.parent / "evil")
    (saved / "logit_scale").symlink_to(saved.parent / "evil")
    with pytest.raises(ValueError, match="points outside the model folder"):
        load(saved)


def test_files_linked_into_the_hubs_cache_are_read(saved, texts, tmp_path):
    """The hub client keeps files under their hash and gives a folder of links to them."""
    expected = load(saved).encode(texts)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(files(saved)):
        blob = path.rename(blobs / str(number))
        path.symlink_to(blob)
    np.testing.assert_array_equal(load(saved).encode(texts), expected)


def test_later_format_is_refused(saved):
    edit(saved / "config_freezealign.json", format_version=99)
    with pytest.raises(ValueError, match=r"later freezealign.*pip install -U freezealign"):
        load(saved)


def test_unknown_function_as_encoder_says_how_to_register_it(callable_model, tmp_path):
    callable_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)is a function.*register_encoder\(.*encoders="):
        load(tmp_path)


@pytest.mark.parametrize("backend", ["pickle", "..training", "base", "hub", "os", 3])
def test_unknown_backend_of_an_encoder_is_refused(saved, backend):
    edit(folder_of(saved, "text", "FrozenEncoder") / "config.json", backend=backend)
    with pytest.raises(ValueError, match="backend"):
        load(saved)


def test_unknown_package_of_an_encoder_is_refused(saved):
    edit(folder_of(saved, "text", "FrozenEncoder") / "config.json", backend="sentence_transformers", package="no-such")
    with pytest.raises(ValueError, match="no-such"):
        load(saved)


def test_encoder_without_a_saved_fingerprint_is_refused(saved):
    edit(folder_of(saved, "text", "FrozenEncoder") / "config.json", fingerprint=None)
    with pytest.raises(ValueError, match="fingerprint"):
        load(saved)


def test_unknown_option_of_a_block_is_refused(saved):
    edit(folder_of(saved, "text", "Pooling") / "config.json", mode="mean", surprise=1)
    with pytest.raises(ValueError, match=r"no option \['surprise'\]"):
        load(saved)


@pytest.mark.parametrize("value", ["wide", -3, 2.5, [16]])
def test_impossible_width_of_a_block_is_refused(saved, value):
    path = folder_of(saved, "text", "ProjectionHead")
    edit(path / "config.json", in_dim=value)
    with pytest.raises(ValueError, match=re.escape(path.name)):
        load(saved)


# Where it comes from


def test_hub_id_that_is_not_cached_says_that_the_hub_is_out_of_reach():
    with pytest.raises(ConnectionError, match=r"hub for 'nobody/no-such-model', and it is not in the local cache\.$"):
        FreezeAlign.from_pretrained("nobody/no-such-model")


def test_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)no/such/model.*neither a local folder nor a model on the hub"):
        FreezeAlign.from_pretrained(tmp_path / "no/such/model")


def test_folder_of_something_else_is_refused(bert_folder):
    with pytest.raises(ValueError, match=r"config_freezealign\.json' is missing"):
        FreezeAlign.from_pretrained(bert_folder)


# Other encoders at load


def test_encoder_of_the_same_width_can_be_given_at_load(saved, bert_folder, texts):
    loaded = load(saved, encoders={"text": FrozenEncoder(bert_folder, max_length=4)})
    with pytest.warns(UserWarning, match="cut to the encoder's 4 tokens"):
        cut = loaded.encode_text(texts[-1:])
    np.testing.assert_allclose(cut, load(saved).encode_text(["a red"]), atol=1e-5)


def test_encoder_can_be_given_at_load_by_name(saved, sbert_folder, bert_folder, texts):
    changed = load(saved, encoders={"text": sbert_folder})
    assert changed.encoders["text"].name == sbert_folder
    np.testing.assert_allclose(changed.encode_text(texts[:5]), load(saved).encode_text(texts[:5]), atol=1e-5)


def test_given_encoder_replaces_one_that_is_gone(callable_model, texts, tmp_path):
    callable_model.save_pretrained(tmp_path)
    loaded = load(tmp_path, encoders=callable_model.encoders)
    np.testing.assert_array_equal(loaded.encode(texts), callable_model.encode(texts))


def test_given_encoder_of_another_width_is_refused(saved, dinov2_folder, bert_folder):
    narrow = FrozenEncoder(lambda items: np.ones((len(items), 3), np.float32), "text")
    with pytest.raises(ValueError, match=r"3 wide.*trained for 20.*swap_encoder\('text'"):
        load(saved, encoders={"text": narrow})


def test_given_encoder_of_another_modality_is_refused(saved):
    wrong = FrozenEncoder(lambda items: np.ones((len(items), 24), np.float32), "text")
    with pytest.raises(ValueError, match="text"):
        load(saved, encoders={"image": wrong})


def test_encoder_for_an_unknown_tower_is_refused(saved, bert_folder):
    with pytest.raises(ValueError, match=r"\['audio'\].*\['image', 'text'\]"):
        load(saved, encoders={"audio": bert_folder})


def test_encoder_can_be_given_by_name_for_a_tower_of_any_name(dinov2_folder, images, tmp_path):
    model = FreezeAlign({"photo": FrozenEncoder(dinov2_folder)}, dim=8, device="cpu")
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, encoders={"photo": dinov2_folder})
    np.testing.assert_array_equal(loaded.encode(images), model.encode(images))


# Sharing


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that keeps what it is given."""
    import huggingface_hub

    class Hub:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options))

        def upload_folder(self, *, repo_id, folder_path, commit_message, **options):
            calls.append(("upload", repo_id, commit_message))
            shutil.copytree(folder_path, tmp_path / repo_id)
            return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})

    calls: list[tuple] = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return calls


def test_uploaded_repository_is_a_complete_model(hub, model, images, tmp_path):
    model.push_to_hub("me/aligned")
    np.testing.assert_array_equal(load(tmp_path / "me/aligned").encode(images), model.encode(images))
    assert (tmp_path / "me/aligned/README.md").is_file()


def test_upload_returns_the_address_of_the_commit(hub, callable_model):
    assert callable_model.push_to_hub("me/aligned") == "https://hub/me/aligned/commit/1"


def test_upload_passes_on_token_privacy_and_message(hub, callable_model):
    callable_model.push_to_hub("me/aligned", token="secret", private=True, message="First")
    assert hub == [
        ("token", "secret"),
        ("create", "me/aligned", {"private": True, "exist_ok": True}),
        ("upload", "me/aligned", "First"),
    ]


def test_uploaded_card_names_the_repository(hub, callable_model, tmp_path):
    callable_model.push_to_hub("me/aligned")
    card = (tmp_path / "me/aligned/README.md").read_text()
    assert 'FreezeAlign.from_pretrained("me/aligned")' in card
    assert 'SentenceTransformer("me/aligned", trust_remote_code=True)' in card


def test_upload_leaves_no_folder_behind(hub, callable_model, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    callable_model.push_to_hub("me/aligned")
    assert list((tmp_path / "temporary").iterdir()) == []


# The model card


class Accuracy:
    name = "emoji"

    def __call__(self, model, output_path=None, epoch=-1, steps=-1):
        results = {"emoji_top1": 0.4321}
        model.model_card_data.set_evaluation_metrics(self, results, epoch, steps)
        return results


@pytest.fixture
def trained_card(model, pairs, tmp_path) -> Path:
    model.fit(pairs, Accuracy(), epochs=1, batch_size=6, data_name="twelve pictures", show_progress_bar=False)
    model.save_pretrained(tmp_path / "aligned")
    return tmp_path / "aligned" / "README.md"


def test_card_names_both_encoders_and_their_fingerprints(original, dinov2_folder, bert_folder):
    text = (original / "README.md").read_text()
    for folder in (dinov2_folder, bert_folder):
        assert f"`{folder}`" in text
        assert FrozenEncoder(folder).fingerprint[:16] in text


def test_card_names_the_training_data_and_its_size(trained_card):
    assert "12 pairs of twelve pictures (0 skipped as unreadable)" in trained_card.read_text()


def test_card_counts_what_was_skipped(callable_model, pairs, tmp_path):
    callable_model.fit(
        [*pairs, (None, "a"), (pairs[0][0], "")], epochs=1, data_name="pictures", show_progress_bar=False
    )
    callable_model.save_pretrained(tmp_path)
    assert "12 pairs of pictures (2 skipped as unreadable)" in (tmp_path / "README.md").read_text()


def test_card_gives_the_scores(trained_card):
    text = trained_card.read_text()
    assert "**emoji**" in text and "| emoji_top1 | 0.4321 |" in text


def test_card_puts_interval_and_chance_beside_a_score(callable_model, tmp_path):
    scores = {"R@1": 0.5, "R@1_low": 0.4, "R@1_high": 0.6, "R@1_chance": 0.1, "protocol": "cosine"}
    callable_model.model_card_data.set_evaluation_metrics(type("Emoji", (), {"name": "emoji"}), scores)
    callable_model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "**emoji**: cosine" in text and "| R@1 | 0.5 | 0.400–0.600 | 0.100 |" in text


def test_card_gives_the_training_arguments(trained_card):
    text = trained_card.read_text()
    assert "| epochs | 1 |" in text
    assert "| learning_rate | 0.001 |" in text


def test_card_of_an_untrained_model_says_so(original):
    text = (original / "README.md").read_text()
    assert "Not trained" in text
    assert "Not evaluated" in text


def test_card_survives_loading(trained_card, tmp_path):
    load(trained_card.parent).save_pretrained(tmp_path / "again" / "aligned")
    assert (tmp_path / "again" / "aligned" / "README.md").read_text() == trained_card.read_text()


def test_front_matter_is_what_the_hub_reads(original):
    from huggingface_hub import ModelCard

    data = ModelCard.load(original / "README.md").data
    assert data.library_name == "freezealign"
    assert data.pipeline_tag == "feature-extraction"
    assert "sentence-transformers" in data.tags


def test_front_matter_names_hub_models_as_base_models(original, tmp_path, monkeypatch):
    from dataclasses import replace

    from huggingface_hub import ModelCard

    model = load(original)
    for name, source in {
        "image": "facebook/dinov2-large",
        "text": "sentence-transformers/all-roberta-large-v1",
    }.items():
        encoder = model.encoders[name]
        encoder.reference = replace(encoder.reference, source=source)
    model.save_pretrained(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == ["facebook/dinov2-large", "sentence-transformers/all-roberta-large-v1"]


def test_usage_code_of_the_card_runs(original, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (original / "README.md").read_text(), re.DOTALL)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "picture.png")
    monkeypatch.chdir(original.parent)
    scope: dict = {}
    exec(code.replace("photo.jpg", str(tmp_path / "picture.png")), scope)
    assert scope["images"].shape == (1, 16)
    assert scope["texts"].shape == (2, 16)
    assert "tensor" in capsys.readouterr().out


# What a damaged folder is told by


DAMAGE = {
    "temperature of 0": ("logit_scale", lambda tensors: tensors["temperature"].zero_(), "the temperature is 0"),
    "temperature below 0": ("logit_scale", lambda tensors: tensors["temperature"].fill_(-1), "the temperature is -1"),
    "temperature of NaN": ("logit_scale", lambda tensors: tensors["temperature"].fill_(torch.nan), "NaN or infinity"),
    "weights of NaN": ("image_1", lambda tensors: next(iter(tensors.values())).fill_(torch.nan), "NaN or infinity"),
    "weights of infinity": ("text_1", lambda tensors: next(iter(tensors.values())).fill_(torch.inf), "NaN or infinity"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_refused_by_the_name_of_their_file(saved, damage):
    prefix, spoil, message = DAMAGE[damage]
    path = next(saved.glob(f"{prefix}*/model.safetensors"))
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    spoil(tensors)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=rf"{prefix}.*{message}"):
        FreezeAlign.from_pretrained(saved)


CONFIGS = {
    "a width beyond memory": ("image_1*/config.json", lambda c: c.update(out_dim=10**9)),
    "a width that is text": ("image_1*/config.json", lambda c: c.update(out_dim="8")),
    "structure that is a list": ("router_config.json", lambda c: c.update(structure=[])),
    "types that are text": ("router_config.json", lambda c: c.update(types="freezealign.Pooling")),
    "version that is text": ("config_freezealign.json", lambda c: c.update(format_version="2")),
}


@pytest.mark.parametrize("change", CONFIGS)
def test_odd_configurations_are_refused_before_anything_is_allocated(saved, change):
    pattern, make = CONFIGS[change]
    path = next(saved.glob(pattern))
    content = json.loads(path.read_text())
    make(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=path.parent.name):
        FreezeAlign.from_pretrained(saved)


def test_deep_json_is_refused(saved):
    (saved / "router_config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"router_config\.json: not valid JSON"):
        FreezeAlign.from_pretrained(saved)


def test_files_follow_the_umask(model, tmp_path):
    before = os.umask(0o022)
    try:
        model.save_pretrained(tmp_path / "shared")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "shared").rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o644}, modes
