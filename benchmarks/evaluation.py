"""Evaluation against clip-benchmark, from the embeddings on and for class names: time, memory, and equal results.

python benchmarks/evaluation.py

Retrieval is measured in processes of its own, memory as the peak above that of holding embeddings and captions. Class
vectors are made in one process, both sides in turn. Needs Linux and clip-benchmark.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from report import HIDE_NOTHING, measure, print_cost, ratio, record, run
from torch import Tensor
from torch.nn.functional import normalize

from freezealign import FreezeAlign
from freezealign.evaluation import RetrievalEvaluator
from freezealign.evaluation.metrics import positive_ranks
from freezealign.evaluation.prompts import ClassPrompts
from freezealign.evaluation.testsets import benchmark_class_names, benchmark_templates
from freezealign.integrations.clip_benchmark import Texts

CAPTIONS = 5
KS = (1, 5, 10)
BATCH = 64  # clip-benchmark's own; it also computes recall in such batches
WIDTHS = {"ours": 512, "clip-benchmark": 512, "ours, narrow": 64}
CLASSES, PADDED_CLASSES, PADDING = 50, 10, 77
QUIET = {"show_progress_bar": False}


class Lookup:
    """A model whose embeddings are given, found under the numbers of images and captions.

    Args:
        images: (n, d), unit length.
        texts: (n * CAPTIONS, d), unit length.
    """

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        self.images, self.texts = images, texts

    def encode_image(self, items: Any, **options: Any) -> Tensor:
        """Return the embeddings of some images, or all of them for a range."""
        return self.images if isinstance(items, range) else self.images[items]

    def encode_text(self, items: Any, **options: Any) -> Tensor:
        """Return the embeddings of some captions, or all of them for a list of strings."""
        return self.texts if isinstance(items, list) else self.texts[items]


def random_embeddings(n: int, width: int) -> Lookup:
    """Return n images with captions that are like them, but not so like that recall is perfect."""
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(n, width, generator=generator))
    texts = torch.randn(n * CAPTIONS, width, generator=generator)
    texts += 4 * images.repeat_interleave(CAPTIONS, 0)
    return Lookup(images, normalize(texts, out=texts))


def work(task: str, n: int) -> None:
    """Evaluate retrieval among n images and print what it cost, and recall both ways for each k."""
    evaluate = their_recall if task == "clip-benchmark" else our_recall
    for size in (100, n):  # what is loaded on first use counts for neither side
        model = random_embeddings(size, WIDTHS[task])
        function = evaluate(model)
        if size == n:
            print_cost(function)
        else:
            function()


def our_recall(model: Lookup) -> Any:
    """Return a function that computes recall with :class:`RetrievalEvaluator`."""
    n = len(model.images)
    captions = [[str(CAPTIONS * image + number) for number in range(CAPTIONS)] for image in range(n)]
    evaluator = RetrievalEvaluator(range(n), captions, ks=KS)

    def recall() -> list[float]:
        scores = evaluator(model)
        return [scores[f"{direction}_R@{k}"] for k in KS for direction in ("t2i", "i2t")]

    return recall


def their_recall(model: Lookup) -> Any:
    """Return a function that computes recall with clip-benchmark."""
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate

    n = len(model.images)
    captions = torch.arange(n * CAPTIONS).view(n, CAPTIONS).tolist()
    batches = list(zip(torch.arange(n).split(BATCH), [captions[start : start + BATCH] for start in range(0, n, BATCH)]))

    def recall() -> list[float]:
        scores = evaluate(model, batches, torch.tensor, "cpu", amp=False, recall_k_list=KS)
        return [scores[f"{direction}_retrieval_recall@{k}"] for k in KS for direction in ("image", "text")]

    return recall


def retrieval() -> list[str]:
    """Return the lines about retrieval."""
    ours, theirs = measure(("ours", 5_000), ("clip-benchmark", 5_000), repeats=2)
    # A wrong item within rounding of the right one counts against the model here; they leave it to chance.
    torch.testing.assert_close(ours["value"], theirs["value"], rtol=0, atol=1e-4)
    faster, smaller = theirs["seconds"] / ours["seconds"], theirs["peak"] / ours["peak"]
    memories = f"{ours['peak']:,.0f} / {theirs['peak']:,.0f} MiB: 1/{smaller:.0f}"
    large, small = (run("ours, narrow", n, **HIDE_NOTHING) for n in (100_000, 10_000))
    growth = f"{large['peak']:,.0f} / {small['peak']:,.0f} MiB: {large['peak'] / small['peak']:.2f}x"
    return [
        f"| retrieval, 5,000 × 25,000, 512 wide | clip-benchmark | {faster:.1f}x | {memories} | recall |",
        f"| retrieval, 100,000 × 500,000, 64 wide ({large['seconds']:.0f} s) | itself at a tenth | | {growth} | |",
    ]


class Tokens(dict[str, Tensor]):
    """Tokens that clip-benchmark can send to a device."""

    def to(self, device: str) -> Tokens:
        """Return them as they are, as all is on the CPU."""
        return self


class ClassByClass:
    """The model as clip-benchmark calls it: with the texts of one class, or their tokens."""

    def __init__(self, model: FreezeAlign) -> None:
        self.model = model

    def encode_text(self, batch: Texts | Tokens) -> Tensor:
        """Return the embeddings (B, d) of B texts."""
        if isinstance(batch, Tokens):
            return self.model({"text": dict(batch)})["text"]
        embeddings: Tensor = self.model.encode_text(list(batch), convert_to_tensor=True, **QUIET)
        return embeddings

    def pad(self, texts: list[str]) -> Tokens:
        """Return tokens padded to one length, as open_clip's tokenizers do."""
        tokenizer = self.model.tower("text").encoder.encoder.tokenizer
        return Tokens(tokenizer(texts, padding="max_length", max_length=PADDING, return_tensors="pt"))


def class_vectors(model: FreezeAlign, classes: int, padded: bool) -> str:
    """Return the line about the vectors of some classes, made together or one by one."""
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    names, templates = benchmark_class_names("imagenet1k"), benchmark_templates("imagenet1k")
    names = names[:: len(names) // classes]
    naive, prompts, found = ClassByClass(model), ClassPrompts(names, templates), {}

    def theirs() -> None:
        tokenizer = naive.pad if padded else Texts
        found["theirs"] = zero_shot_classifier(naive, tokenizer, names, templates, "cpu", amp=False).T

    def ours() -> None:
        found["ours"] = prompts.vectors(model, "", **QUIET)

    faster = ratio(theirs, ours, repeats=2)
    torch.testing.assert_close(found["ours"], found["theirs"], rtol=0, atol=1e-5)
    accuracies = [accuracy(vectors) for vectors in found.values()]
    assert accuracies[0] == accuracies[1], accuracies
    tokens = f"tokens padded to {PADDING}, as open_clip's tokenizers do" if padded else "the same `encode_text`"
    return (
        f"| class vectors, {classes} classes × {len(templates)} templates | clip-benchmark's loop, {tokens} | "
        f"{faster:.2f}x | | vectors, accuracy {accuracies[0]:.2f} |"
    )


def accuracy(classes: Tensor) -> float:
    """Return the share of random images near class vectors (C, d) whose class is the nearest."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(classes)).repeat_interleave(100)
    images = normalize(classes[labels] + 0.3 * torch.randn(len(labels), classes.shape[1], generator=generator))
    return float((positive_ranks(images, classes, labels, torch.arange(len(classes))) == 0).float().mean())


def main() -> None:
    """Measure and write the table."""
    model = FreezeAlign(["all-minilm-l6-v2"], dim=512, device="cpu", seed=0)
    lines = [class_vectors(model, CLASSES, padded=False), class_vectors(model, PADDED_CLASSES, padded=True)]
    header = (
        "Retrieval is among images × captions; its embeddings are random, and given; recall is computed in batches of "
        f"{BATCH} on clip-benchmark's side, as it does itself. Class vectors are of all-MiniLM-L6-v2 and an untrained "
        f"projector, for every {1000 // CLASSES}th or {1000 // PADDED_CLASSES}th of ImageNet's 1,000 classes: all of "
        "them would take many minutes. Memory: peak above that of holding the data, ours / theirs. The last column "
        "says what was found equal.\n\n"
        "| what | against | faster | memory | equal |\n|---|---|---|---|---|"
    )
    record("Evaluation", header, [*retrieval(), *lines])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[1], int(sys.argv[2]))
    else:
        main()
