"""Train a model on real pictures, evaluate it on held-out ones, write a report and a picture."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from freezealign.demo.queries import draw_queries
from freezealign.demo.report import DemoReport
from freezealign.evaluation import RetrievalEvaluator, ZeroShotClassificationEvaluator
from freezealign.features import Level
from freezealign.features.folder import FORMAT_VERSION
from freezealign.model import FreezeAlign
from freezealign.samples import SampleSet, load_openmoji, load_tuxpaint, pairs
from freezealign.training.arguments import InitKind

ENCODERS = ("efficientnet-lite2", "use-multilingual")
ZERO_SHOT_LANGUAGES = ("en", "de", "ja")
BATCH_SIZE = 8  # a convolutional encoder on a CPU is fastest while its feature maps fit the cache
PICTURE_LANGUAGES = ("en", "de", "ru", "ja", "ar", "ko", "es", "zh", "zh_CN")


def load_data(data: str, stamps: str | Path | None = None, fold: int = 0) -> SampleSet:
    """Return the sample set called ``openmoji`` or ``tuxpaint``.

    Raises:
        ValueError: If there is no such set, or ``tuxpaint`` comes without the folder of its stamps.
    """
    if data == "openmoji":
        return load_openmoji()
    if data != "tuxpaint":
        raise ValueError(f"no data called '{data}'; choose openmoji or tuxpaint.")
    if stamps is None:
        raise ValueError("say where the stamps are: --stamps DIR; 'make stamps' fetches them.")
    return load_tuxpaint(stamps, fold)


def run_demo(
    output: str | Path,
    samples: SampleSet,
    *,
    encoders: Sequence[str] = ENCODERS,
    recipe: str = "auto",
    init: InitKind | None = None,
    epochs: int | None = None,
    dim: int = 512,
    seed: int = 0,
    dtype: str | None = None,
    backend: str | None = None,
    announce: Callable[[str], None] = lambda stage: None,
) -> DemoReport:
    """Train on the English captions of ``samples.train``, evaluate on ``samples.test`` in every language.

    Frozen features are kept in the user's cache, so that a second run only trains.

    Args:
        output: Folder for ``model/``, ``report.md``, ``report.json`` and ``queries.png``.
        samples: What to train and test on; see :func:`load_data`.
        encoders: One image and one text encoder.
        recipe: The model's blocks; by default ``fit`` chooses what suits the number of pairs.
        init: ``closed-form`` or ``random``, instead of what suits; see :class:`FitArguments`.
        epochs: Passes of contrastive training over the pairs after that.
        dim: Width of the shared space.
        seed: Of initial weights, order and dropout.
        dtype: What the encoders run in; see :class:`~freezealign.FreezeAlign`.
        backend: What runs them.
        announce: Called with the name of each stage as it begins.
    """
    output, seconds = Path(output), dict[str, float]()
    stage = partial(timed, announce, seconds)
    output.mkdir(parents=True, exist_ok=True)
    with stage("Loading the encoders"):
        model = FreezeAlign(list(encoders), recipe=recipe, dim=dim, seed=seed, dtype=dtype, backend=backend)
        level: Level = "tokens" if recipe == "token" else "pooled"
        cache = feature_cache(model, samples) / level
        options: dict[str, Any] = {"level": level, "reuse": True, "batch_size": BATCH_SIZE}
    with stage("Frozen features, training set"):
        store = model.extract_features(pairs(samples.train), cache / "train", **options)
    with stage("Frozen features, test set"):
        pictures = [{"image": sample.image} for sample in samples.test]
        images = model.extract_features(pictures, cache / "test-images", modalities=["image"], **options)
        unreadable = {entry.index for entry in images.skipped}
        test = [sample for index, sample in enumerate(samples.test) if index not in unreadable]
        captions = {code: [sample.captions.get(code) for sample in test] for code in samples.languages}
        retrieval = RetrievalEvaluator(images["image"], captions, name="retrieval").precompute(model, cache / "test")
        # a class without a name in a language keeps its English one, and the report says so
        names = {code: [s.captions.get(code) or s.captions["en"] for s in test] for code in ZERO_SHOT_LANGUAGES}
        zero_shot = ZeroShotClassificationEvaluator(images["image"], range(len(test)), names, name="zero_shot")
    with stage("Training"):
        model.fit(store, init=init, epochs=epochs, seed=seed, data_name=f"{samples.name}, English captions")
    with stage("Evaluation"):
        recalls, accuracies = retrieval(model), zero_shot(model)
    with stage("Picture"):
        draw_queries(output / "queries.png", model, test, images["image"], PICTURE_LANGUAGES)
    model.save_pretrained(output / "model")
    skipped = {"training": store.skipped, "test": images.skipped}
    report = DemoReport(samples, model, skipped, recalls, accuracies, seconds)
    report.write(output)
    return report


@contextmanager
def timed(announce: Callable[[str], None], seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Announce a stage as it begins, and note how long it took."""
    announce(stage)
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def feature_cache(model: FreezeAlign, samples: SampleSet) -> Path:
    """Return the folder in the user's cache for the features of these encoders on this data."""
    from huggingface_hub import cached_assets_path

    encoders = [str(encoder.get_config_dict()) for encoder in model.encoders.values()]
    key = hashlib.sha256("\n".join([str(FORMAT_VERSION), samples.digest(), *encoders]).encode()).hexdigest()[:16]
    return Path(cached_assets_path("freezealign", "features", key))
