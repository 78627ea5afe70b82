"""Does curation pay on a small pool? Clip art for the categories of Tux Paint, on real encoders.

python examples/studies/clip_art.py --stamps stamps --clip-art clip-art --output clip-art-output

``make stamps clip-art`` fetches both. The pool is Debian's Open Clip Art, with the titles and keywords of its files,
and OpenMoji. Prototypes are the pictures of fold 0 of Tux Paint by category; the test set is the pictures of the other
four folds, and what is nearly like one of them is taken out of the pool first. Models are trained on (a) the whole
pool, (b) random subsets, (c) the curated subset of equal size, (d) the whole pool and the curated subset.
"""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freezealign import FeatureStore, FreezeAlign
from freezealign.curation import CaptionLength, Leaks, NearDuplicates, Prototypes, curate, open_pool
from freezealign.data.openmoji import load_openmoji
from freezealign.data.samples import Sample, hash_fold, pairs
from freezealign.data.tuxpaint import load_tuxpaint
from freezealign.evaluation.metrics import bootstrap_interval, positive_ranks
from freezealign.files import write_json_atomically
from freezealign.tables import markdown_table

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


def category(sample: Sample) -> str:
    """Return the folder of a stamp."""
    return sample.key.split("/")[0]


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


def compare(
    clean: FeatureStore, chosen: FeatureStore, test: FeatureStore, labels: Sequence[str], recipe: str
) -> dict[str, np.ndarray]:
    """Return the hits (metrics, n) of each training set; those of the random ones are averaged over subsets."""
    rng = np.random.default_rng(0)
    subsets = [clean.select(rng.choice(len(clean), len(chosen), replace=False)) for _ in range(RANDOM_SUBSETS)]
    random = [hits(train([subset], recipe), test, labels) for subset in subsets]
    return {
        "(a) whole pool": hits(train([clean], recipe), test, labels),
        f"(b) random, mean of {RANDOM_SUBSETS}": np.mean(random, 0),
        "(c) curated": hits(train([chosen], recipe), test, labels),
        "(d) whole and curated": hits(train([clean, chosen], recipe), test, labels),
    }


def main() -> None:
    """Run the study and write ``report.md`` and ``report.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True, help="folder of the Tux Paint stamps")
    parser.add_argument("--clip-art", type=Path, required=True, help="folder of Open Clip Art")
    parser.add_argument("--output", type=Path, default=Path("clip-art-output"))
    arguments = parser.parse_args()
    base = FreezeAlign(list(ENCODERS), recipe="linear", dim=512, seed=0)
    drawings = [{**pair, "id": s.key} for s, pair in zip(load_openmoji().samples, pairs(load_openmoji().samples))]
    pool = features(base, [*clip_art(arguments.clip_art), *drawings], arguments.output / "pool")
    stamps = load_tuxpaint(arguments.stamps).samples
    data = [{"image": s.image, "text": s.captions["en"], "id": s.key} for s in stamps]
    stored = features(base, data, arguments.output / "stamps")
    owners = {sample.key: category(sample) for sample in stamps}
    labels = [owners[key] for key in stored.ids]
    few = np.array([hash_fold(key) == 0 for key in stored.ids])
    test, truth = stored.select(~few), [label for label, one in zip(labels, few) if not one]
    shots = stored.select(few)["image"].load(np.arange(few.sum()))["sentence_embedding"]
    shown = [label for label, one in zip(labels, few) if one]
    prototypes = Prototypes.from_vectors(shots, shown, stored.origins["image"], modality="image", fold=0)
    clean, leaks = without_leaks(pool, test)
    rows, record = [], {"pool": len(pool), "skipped": len(pool.skipped), "leaks": leaks, "test": len(test)}
    for size in SIZES:
        opened = open_pool(clean)
        filters = [CaptionLength(1, 30), NearDuplicates(opened, DUPLICATE)]
        found = curate(
            opened,
            prototypes,
            arguments.output / f"curated-{size}",
            per_concept=size,
            filters=filters,
            pictures=[*clip_art(arguments.clip_art), *drawings],
        )
        chosen = clean.select(np.sort(found.selection.rows))
        for recipe in RECIPES:
            sets = compare(clean, chosen, test, truth, recipe)
            sets["(c) - (b)"] = sets["(c) curated"] - sets[f"(b) random, mean of {RANDOM_SUBSETS}"]
            sets["(d) - (a)"] = sets["(d) whole and curated"] - sets["(a) whole pool"]
            for name, values in sets.items():
                scores = [interval(row) for row in values]
                rows.append([recipe, str(len(chosen)), name, *scores])
                print(*rows[-1], sep=" | ", flush=True)
    table = markdown_table(["recipe", "curated pairs", "trained on", *METRICS], rows)
    chance = f"Chance: {1 / len(set(truth)):.3f}, {1 / len(test):.3f}, {10 / len(test):.3f}."
    summary = (
        f"{len(pool):,} pairs in the pool ({len(pool.skipped):,} more could not be read), {leaks} of them nearly like "
        f"a test picture and taken out; {len(test)} test pictures. {chance}"
    )
    (arguments.output / "report.md").write_text(f"{summary}\n\n{table}\n", encoding="utf-8")
    write_json_atomically(arguments.output / "report.json", {**record, "rows": rows})


if __name__ == "__main__":
    main()
