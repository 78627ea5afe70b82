"""Does curation pay on a small pool? Clip art for the categories of Tux Paint, on real encoders.

python examples/studies/clip_art.py --stamps stamps --clip-art clip-art --output clip-art-output

``make stamps clip-art`` fetches both. The pool is Debian's Open Clip Art, with the titles and keywords of its files,
and OpenMoji. Examples of the concepts are the pictures of fold 0 of Tux Paint by category, to compare with pictures,
and the names of the categories, to compare with captions. The test set is the pictures of the other four folds; what is
nearly like one of them is taken out of the pool first. Models are trained on (a) the whole pool, (b) random subsets,
(c) the curated subset of equal size, (d) the whole pool and the curated subset.
"""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freezealign import FeatureStore, FreezeAlign
from freezealign.curation import CaptionLength, Leaks, NearDuplicates, Prototypes, curate, open_pool
from freezealign.evaluation.metrics import bootstrap_interval, positive_ranks
from freezealign.markdown import markdown_table
from freezealign.samples import hash_fold, load_openmoji, load_tuxpaint

ENCODERS = ("efficientnet-lite2", "use-multilingual")
BATCH_SIZE = 8  # a convolutional encoder on a CPU is fastest while its feature maps fit the cache
RECIPES = ("linear", "kernel")
SIZES = (50, 150)
RANDOM_SUBSETS = 5
LEAK, DUPLICATE = 0.9, 0.95
NAMES = {"naturalforces": "natural forces", "town": "buildings and signs of a town", "seasonal": "a holiday"}
"""What a category is called, where its folder's name says it badly."""
METRICS = ("category top-1", "T2I R@1", "T2I R@10")


def clip_art(root: Path) -> Iterator[dict[str, Any]]:
    """Yield the pairs of Open Clip Art: the picture, and its title and keywords as two captions."""
    pictures = next(iter(sorted(root.rglob("openclipart/png"))), None)
    if pictures is None:
        raise SystemExit(f"there is no Open Clip Art below {root}; 'make clip-art' fetches it.")
    for picture in sorted(pictures.rglob("*.png")):
        key = picture.relative_to(pictures)
        yield {"image": picture, "text": captions(pictures.parent / "svg" / key.with_suffix(".svg")), "id": str(key)}


def captions(path: Path) -> list[str]:
    """Return title and keywords of a drawing, as its metadata has them; what names a file, not a thing, is left out."""
    try:
        work = re.search(r"<cc:Work.*?</cc:Work>", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    except OSError:
        return []
    if work is None:
        return []
    title = re.search(r"<dc:title>(.*?)</dc:title>", work[0], re.DOTALL)
    words = [plain(word) for word in re.findall(r"<rdf:li>(.*?)</rdf:li>", work[0], re.DOTALL)]
    keywords = ", ".join(word for word in words if word and word not in ("hash", "unsorted"))
    return [text for text in (plain(title[1]) if title else "", keywords) if text]


def plain(text: str) -> str:
    """Return text without entities, underscores and runs of spaces."""
    return " ".join(html.unescape(text).replace("_", " ").split())


def features(model: FreezeAlign, data: Sequence[dict[str, Any]], path: Path) -> FeatureStore:
    """Return pooled features, computed once."""
    return model.extract_features(data, path, level="pooled", reuse=True, batch_size=BATCH_SIZE)


def without_leaks(pool: FeatureStore, test: FeatureStore) -> tuple[FeatureStore, int]:
    """Return the pool without what is nearly like a test picture, and how many those were."""
    opened, rows = open_pool(pool), np.arange(len(pool))
    keep = Leaks({"folds 1 to 4": open_pool(test)}, opened, LEAK).keep(opened, rows, np.zeros((0, 1), np.uint64))
    return pool.select(rows[keep]), int((~keep).sum())


def hits(model: FreezeAlign, test: FeatureStore, labels: Sequence[str]) -> np.ndarray:
    """Return (metrics, n) 0 or 1: for each test picture whether its category and its caption's picture are found."""
    images = model.encode_image(test["image"], convert_to_tensor=True)
    texts = model.encode_text(test["text"], convert_to_tensor=True)
    names = sorted(set(labels))
    classes = model.encode_text([NAMES.get(name, name) for name in names], convert_to_tensor=True)
    truth, each = torch.tensor([names.index(label) for label in labels]), torch.arange(len(images))
    by_class = positive_ranks(images, classes, truth, torch.arange(len(names)))
    by_caption = positive_ranks(texts, images, each, each)
    return np.stack([(by_class < 1).numpy(), (by_caption < 1).numpy(), (by_caption < 10).numpy()]).astype(float)


def train(stores: Sequence[FeatureStore], recipe: str) -> FreezeAlign:
    """Return a model that was trained on some stores."""
    model = FreezeAlign(list(ENCODERS), recipe=recipe, dim=512, seed=0)
    model.fit(list(stores), seed=0, show_progress_bar=False)
    return model


def interval(values: np.ndarray) -> str:
    """Return mean and 95% bootstrap interval over test items of values (n,)."""
    low, high = bootstrap_interval(values)
    return f"{values.mean():.3f} [{low:.3f}–{high:.3f}]"


def prototypes_of(base: FreezeAlign, shots: FeatureStore, labels: Sequence[str]) -> dict[str, Prototypes]:
    """Return the categories as pictures of fold 0, and as their names."""
    vectors = shots["image"].vectors()
    shown = Prototypes.from_vectors(vectors, labels, shots.origins["image"], modality="image", fold=0)
    named = Prototypes.from_texts(base, [NAMES.get(name, name) for name in shown.names], show_progress_bar=False)
    return {"image": shown, "text": replace(named, names=shown.names)}


def curated(
    clean: FeatureStore, prototypes: dict[str, Prototypes], size: int, output: Path, data: Sequence[dict[str, Any]]
) -> dict[str, FeatureStore]:
    """Return what is selected by pictures, by captions, and by both."""
    pools = {"image": open_pool(clean, "image"), "text": open_pool(clean, "text")}
    filters = [CaptionLength(1, 30), NearDuplicates(pools["image"], DUPLICATE)]
    chosen = {}
    for name, by in {"picture": ["image"], "caption": ["text"], "both": ["image", "text"]}.items():
        found = curate(
            [pools[modality] for modality in by],
            [prototypes[modality] for modality in by],
            output / f"by-{name}-{size}",
            per_concept=size,
            filters=filters,
            pictures=data,
        )
        chosen[f"by {name}"] = clean.select(np.sort(found.selection.rows))
    return chosen


def compare(
    clean: FeatureStore, sets: dict[str, FeatureStore], recipe: str, score: Callable[[FreezeAlign], np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the hits (metrics, n) of each training set; those of the random ones are averaged over subsets."""
    whole, randoms = score(train([clean], recipe)), {}
    found = {"(a) whole pool": whole}
    for name, chosen in sets.items():
        if (size := len(chosen)) not in randoms:
            draws = [
                np.random.default_rng(seed).choice(len(clean), size, replace=False) for seed in range(RANDOM_SUBSETS)
            ]
            randoms[size] = np.mean([score(train([clean.select(draw)], recipe)) for draw in draws], 0)
            found[f"(b) random, {size}"] = randoms[size]
        random = randoms[size]
        found[f"(c) curated {name}, {len(chosen)}"] = own = score(train([chosen], recipe))
        found[f"(c) - (b) {name}"] = own - random
        found[f"(d) whole and curated {name}"] = both = score(train([clean, chosen], recipe))
        found[f"(d) - (a) {name}"] = both - whole
    return found


def main() -> None:
    """Run the study and write ``report.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True, help="folder of the Tux Paint stamps")
    parser.add_argument("--clip-art", type=Path, required=True, help="folder of Open Clip Art")
    parser.add_argument("--output", type=Path, default=Path("clip-art-output"))
    arguments = parser.parse_args()
    base = FreezeAlign(list(ENCODERS), recipe="linear", dim=512, seed=0)
    emoji = load_openmoji().samples
    drawings = [{"image": s.image, "text": s.captions["en"], "id": s.key} for s in emoji]
    offered = [*clip_art(arguments.clip_art), *drawings]
    pool = features(base, offered, arguments.output / "pool")
    stamps = load_tuxpaint(arguments.stamps).samples
    data = [{"image": s.image, "text": s.captions["en"], "id": s.key} for s in stamps]
    stored = features(base, data, arguments.output / "stamps")
    labels = np.array([key.split("/")[0] for key in stored.ids])
    few = np.array([hash_fold(key) == 0 for key in stored.ids])
    test, truth = stored.select(~few), labels[~few].tolist()
    prototypes = prototypes_of(base, stored.select(few), labels[few].tolist())
    clean, leaks = without_leaks(pool, test)
    rows = []
    for size in SIZES:
        sets = curated(clean, prototypes, size, arguments.output, offered)
        for recipe in RECIPES:
            for name, values in compare(clean, sets, recipe, lambda model: hits(model, test, truth)).items():
                rows.append([str(size), recipe, name, *map(interval, values)])
                print(*rows[-1], sep=" | ", flush=True)
    summary = (
        f"{len(pool):,} pairs in the pool ({len(pool.skipped):,} more could not be read), {leaks} of them nearly like "
        f"a test picture and taken out; {int(few.sum())} pictures as examples, {len(test)} to test. Chance: "
        f"{1 / len(set(truth)):.3f}, {1 / len(test):.3f}, {10 / len(test):.3f}."
    )
    table = markdown_table(["quota", "recipe", "trained on", *METRICS], rows)
    (arguments.output / "report.md").write_text(f"{summary}\n\n{table}\n", encoding="utf-8")
    print(summary)


if __name__ == "__main__":
    main()
