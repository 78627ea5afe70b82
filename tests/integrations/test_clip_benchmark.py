"""clip-benchmark's own metrics and command line on a FreezeAlign."""

from __future__ import annotations

import io
import json
import sys
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from taught import CLASSES, plain_colours, teach
from torch.utils.data import DataLoader, Dataset

from freezealign import FreezeAlign, RetrievalEvaluator, ZeroShotClassificationEvaluator
from freezealign.integrations import clip_benchmark

metric = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")

TEMPLATES = ["{c}", "number {c}"]
KS = (1, 3, 5)


class Pictures(Dataset):
    """Transformed images with whatever belongs to each; knows its classes, as clip-benchmark asks for them."""

    classes = CLASSES

    def __init__(self, images, others, transform) -> None:
        self.images, self.others, self.transform = images, others, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.others[index]


def batches(images, others, transform, collate=None):
    return DataLoader(Pictures(images, others, transform), batch_size=5, collate_fn=collate)


def with_captions(batch):
    return torch.stack([image for image, _ in batch]), [captions for _, captions in batch]


@pytest.fixture
def images() -> list[Image.Image]:
    return plain_colours()


@pytest.fixture
def taught(model, images, texts) -> FreezeAlign:
    return teach(model, images, texts)


@pytest.fixture
def labels() -> list[int]:
    return [index // 2 for index in range(12)]


@pytest.fixture
def captions(texts) -> list[list[str]]:
    """One caption for every second image, two for the others."""
    return [[text, text.replace("red", "green")][: 1 + index % 2] for index, text in enumerate(texts)]


def our_accuracy(model, images, labels) -> dict:
    return ZeroShotClassificationEvaluator(images, labels, CLASSES, TEMPLATES, show_progress_bar=False)(model)


def our_recall(model, images, captions) -> dict:
    return RetrievalEvaluator(images, captions, ks=KS, show_progress_bar=False)(model)


def check_accuracy(theirs: dict, ours: dict) -> None:
    assert 0.2 < ours["top1"] < 1
    assert theirs["acc1"] == ours["top1"]
    assert theirs["acc5"] == ours["top5"]
    assert theirs["mean_per_class_recall"] == pytest.approx(ours["mean_per_class"])


def check_recall(theirs: dict, ours: dict) -> None:
    assert 0.1 < ours["t2i_R@1"] < 1 and 0.1 < ours["i2t_R@1"] < 1
    for k in KS:
        assert theirs[f"image_retrieval_recall@{k}"] == pytest.approx(ours[f"t2i_R@{k}"])
        assert theirs[f"text_retrieval_recall@{k}"] == pytest.approx(ours[f"i2t_R@{k}"])


# Embeddings


def test_transform_is_the_encoders_own_preprocessing(model, images):
    transform = model.as_clip_benchmark().transform
    expected = model.encoders["image"].preprocess(images)["pixel_values"]
    torch.testing.assert_close(torch.stack([transform(image) for image in images]), expected, rtol=0, atol=0)


def test_images_are_embedded_as_encode_does(model, images):
    adapter, transform, _ = model.as_clip_benchmark()
    images = [images[0], images[1].convert("RGBA"), images[2].convert("L"), images[3].convert("P")]
    embeddings = adapter.encode_image(torch.stack([transform(image) for image in images]))
    np.testing.assert_allclose(embeddings.numpy(), model.encode_image(images), atol=1e-6)


def test_texts_are_embedded_as_encode_does(model, texts):
    adapter, _, tokenizer = model.as_clip_benchmark()
    embeddings = adapter.encode_text(tokenizer(texts).to("cpu"))
    np.testing.assert_array_equal(embeddings.numpy(), model.encode_text(texts))


def test_model_in_training_is_put_into_eval_mode(model, images):
    expected = model.encode_image(images)
    adapter, transform, _ = model.train().as_clip_benchmark()
    pixels = torch.stack([transform(image) for image in images])
    np.testing.assert_allclose(adapter.encode_image(pixels).numpy(), expected, atol=1e-6)


def test_half_precision_changes_embeddings_little(model, images, texts):
    adapter, transform, tokenizer = model.as_clip_benchmark()
    with torch.autocast("cpu"):
        pictures = adapter.encode_image(torch.stack([transform(image) for image in images]))
        sentences = adapter.encode_text(tokenizer(texts))
    for half, full in ((pictures, model.encode_image(images)), (sentences, model.encode_text(texts))):
        assert (half.float().numpy() * full).sum(1).min() > 0.99


# Its metrics


def test_its_zero_shot_metric_gives_our_accuracy(taught, images, labels):
    adapter, transform, tokenizer = taught.as_clip_benchmark()
    loader = batches(images, labels, transform)
    theirs = metric.evaluate(adapter, loader, tokenizer, CLASSES, TEMPLATES, "cpu", amp=False)
    check_accuracy(theirs, our_accuracy(taught, images, labels))


def test_its_retrieval_metric_gives_our_recall(taught, images, captions):
    adapter, transform, tokenizer = taught.as_clip_benchmark()
    loader = batches(images, captions, transform, with_captions)
    theirs = retrieval.evaluate(adapter, loader, tokenizer, "cpu", amp=False, recall_k_list=KS)
    check_recall(theirs, our_recall(taught, images, captions))


# The repair


def numpy_refuses(output, target, topk=(1,)):
    raise TypeError("only 0-dimensional arrays can be converted to Python scalars")


def test_broken_accuracy_is_replaced(monkeypatch):
    monkeypatch.setattr(metric, "accuracy", numpy_refuses)
    clip_benchmark.repair_accuracy()
    assert metric.accuracy(torch.tensor([[3.0, 1, 2], [3, 1, 2]]), torch.tensor([0, 2]), topk=(1, 2)) == [0.5, 1]


def test_working_accuracy_is_left_alone(monkeypatch):
    def works(output, target, topk=(1,)):
        return [1.0]

    monkeypatch.setattr(metric, "accuracy", works)
    clip_benchmark.repair_accuracy()
    assert metric.accuracy is works


@given(st.lists(st.tuples(st.permutations(range(6)), st.integers(0, 5)), min_size=1, max_size=20), st.integers(1, 6))
def test_accuracy_is_the_share_of_targets_among_the_k_largest(rows, k):
    output, target = torch.tensor([row for row, _ in rows]).float(), torch.tensor([right for _, right in rows])
    found = sum(row[right] >= 6 - k for row, right in rows)
    assert clip_benchmark.accuracy(output, target, (k,)) == [found / len(rows)]


# Errors


def test_function_as_image_encoder_is_refused(callable_model):
    with pytest.raises(ValueError, match=r"\['inputs'\].*timm or transformers"):
        callable_model.as_clip_benchmark()


@pytest.mark.parametrize("left_out", ["image", "text"])
def test_model_without_one_of_the_towers_is_refused(dinov2_folder, bert_folder, left_out):
    folders = {"image": dinov2_folder, "text": bert_folder}
    del folders[left_out]
    with pytest.raises(ValueError, match=f"no '{left_out}' tower"):
        FreezeAlign(folders, dim=8, device="cpu").as_clip_benchmark()


def test_missing_package_is_named_with_its_remedy(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "clip_benchmark.metrics.zeroshot_classification", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'freezealign\[eval\]'"):
        model.as_clip_benchmark()


def test_checkpoint_of_a_model_is_refused():
    with pytest.raises(ValueError, match=r"laion400m_e32.*--pretrained ''"):
        clip_benchmark.load("folder", "laion400m_e32", None, "cpu")


def test_cache_folder_is_refused():
    with pytest.raises(ValueError, match=r"'cache'.*--model_cache_dir"):
        clip_benchmark.load("folder", "", "cache", "cpu")


# Its command line


def write_dataset(folder, images: list[Image.Image], others: dict[str, list[str]]) -> None:
    """Write the test split of a dataset in clip-benchmark's layout: one shard, with a PNG and a text for each image."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1")
    (suffix, values) = next(iter(others.items()))
    with tarfile.open(folder / "test" / "0.tar", "w") as archive:
        for index, (image, value) in enumerate(zip(images, values)):
            picture = io.BytesIO()
            image.save(picture, "PNG")
            for ending, content in (("png", picture.getvalue()), (suffix, value.encode())):
                member = tarfile.TarInfo(f"{index:04}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def run_command(monkeypatch, model_folder, data, task: str, *options: str) -> dict:
    output = data / "scores.json"
    command = ["eval", "--model_type", "freezealign", "--model", str(model_folder), "--pretrained", ""]
    command += ["--dataset", "wds/tiny", "--dataset_root", str(data), "--task", task, "--output", str(output)]
    command += ["--no_amp", "--num_workers", "0", "--batch_size", "5", "--quiet", *options]
    monkeypatch.setattr(sys, "argv", ["clip_benchmark", *command])
    clip_benchmark.main()
    return json.loads(output.read_text())["metrics"]


@pytest.fixture
def model_folder(taught, tmp_path):
    taught.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.filterwarnings("ignore:WebDataset:UserWarning")
def test_its_command_line_gives_our_accuracy(taught, model_folder, images, labels, tmp_path, monkeypatch):
    data = tmp_path / "classes"
    write_dataset(data, images, {"cls": [str(label) for label in labels]})
    (data / "classnames.txt").write_text("\n".join(CLASSES))
    (data / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
    theirs = run_command(monkeypatch, model_folder, data, "zeroshot_classification")
    check_accuracy(theirs, our_accuracy(taught, images, labels))


@pytest.mark.filterwarnings("ignore:WebDataset:UserWarning")
def test_its_command_line_gives_our_recall(taught, model_folder, images, captions, tmp_path, monkeypatch):
    data = tmp_path / "captions"
    write_dataset(data, images, {"txt": ["\n".join(lines) for lines in captions]})
    (data / "dataset_type.txt").write_text("retrieval")
    ks = ["--recall_k", *map(str, KS)]
    theirs = run_command(monkeypatch, model_folder, data, "zeroshot_retrieval", *ks)
    check_recall(theirs, our_recall(taught, images, captions))
