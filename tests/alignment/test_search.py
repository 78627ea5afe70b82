"""The search for encoders that belong together: its scores are those of the features, and the right pair wins."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from pandas import DataFrame
from PIL import Image
from torch.utils.data import DataLoader

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder, rank_encoders
from freezealign.alignment import CKNNA, MutualKNN, PairRanking, candidates, linear_cka, measure_alignment, mutual_knn
from freezealign.alignment.vectors import StoreVectors
from freezealign.encoders.base import Encoder, with_tokens
from freezealign.encoders.callable import CallableEncoder
from freezealign.space.recipes import default_pooling

N = 36
QUICK = {"permutations": 39, "resamples": 20, "show_progress_bar": False}


def picture(number: int) -> Image.Image:
    """Noise whose first value is a number."""
    pixels = np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    pixels[0, 0, 0] = number
    return Image.fromarray(pixels)


def number_of(item) -> int:
    word = str(item.getpixel((0, 0))[0]) if isinstance(item, Image.Image) else item.split()[0]
    return int(word) % 50 if word.isdigit() else 0


PICTURES = [picture(number) for number in range(N)]
TEXTS = [f"{number} red apple" for number in range(N)]
PAIRS = list(zip(PICTURES, TEXTS))


class Planted:
    """Maps a number to its vector: a linear image of a latent, which functions of one ``latent`` share, and noise."""

    def __init__(self, latent: int, seed: int, width: int = 6) -> None:
        rng = np.random.default_rng(100 + seed)
        shared = np.random.default_rng(latent).normal(size=(50, 3))
        vectors = shared @ rng.normal(size=(3, width)) + 0.1 * rng.normal(size=(50, width))
        self.vectors = vectors.astype(np.float32)
        self.seen: Counter = Counter()

    def __call__(self, items: list) -> np.ndarray:
        numbers = [number_of(item) for item in items]
        self.seen.update(numbers)
        return self.vectors[numbers]


def frozen(function, modality: str, **options) -> FrozenEncoder:
    return FrozenEncoder(CallableEncoder(function, modality, **{"dim": 6, **options}))


def planted() -> tuple[dict[str, FrozenEncoder], dict[str, FrozenEncoder]]:
    """Two encoders a side, of which only ``near`` and ``words`` share a latent."""
    vision = {"far": frozen(Planted(1, 1), "image"), "near": frozen(Planted(0, 2), "image")}
    return vision, {"words": frozen(Planted(0, 3), "text"), "letters": frozen(Planted(2, 4), "text")}


def rank(vision, text, data=PAIRS, metrics=("cka",), **options) -> PairRanking:
    return rank_encoders(vision, text, data, metrics, **{**QUICK, **options})


def scores_of(ranking: PairRanking) -> dict[tuple, float]:
    """Every number of every score."""
    return {
        (pair.vision, pair.text, metric, key): value
        for pair in ranking.pairs
        for metric, score in pair.scores.items()
        for key, value in asdict(score).items()
        if key != "metric"
    }


def assert_same(first: PairRanking, second: PairRanking, abs: float = 1e-6) -> None:
    assert scores_of(first) == pytest.approx(scores_of(second), abs=abs, nan_ok=True)


def pooled(encoder: FrozenEncoder, items: list) -> torch.Tensor:
    return default_pooling(encoder)(encoder(encoder.preprocess(items)))["sentence_embedding"]


def extract(image: FrozenEncoder | str, text: FrozenEncoder | str, data, level: str = "pooled", **options):
    model = FreezeAlign({"image": image, "text": text}, dim=8, seed=0, device="cpu")
    return model.extract_features(data, level=level, show_progress_bar=False, **options)


def named(pairs=PAIRS) -> list[dict]:
    return [{"id": f"item {number_of(text)}", "image": image, "text": text} for image, text in pairs]


# What is measured


def test_scores_are_the_measures_of_the_pooled_features(dinov2_folder, bert_folder, sbert_folder):
    vision = {"last": dinov2_folder, "first": FrozenEncoder(dinov2_folder, layer=1)}
    ranking = rank(vision, [bert_folder, sbert_folder], metrics=("cka", "mutual_knn"))
    assert len(ranking.pairs) == 4
    images = {"last": pooled(FrozenEncoder(dinov2_folder), PICTURES), "first": pooled(vision["first"], PICTURES)}
    texts = {name: pooled(FrozenEncoder(name), TEXTS) for name in (bert_folder, sbert_folder)}
    for pair in ranking.pairs:
        assert pair.layers is None
        for metric, score in pair.scores.items():
            expected = measure_alignment(images[pair.vision], texts[pair.text], metric, **QUICK)
            assert score.n == score.sampled == expected.n == N
            assert score.value == pytest.approx(expected.value, abs=1e-6)
            assert score.low < score.value < score.high


def test_chance_and_p_value_are_those_of_shuffled_pairs():
    vision, text = planted()
    options = {"permutations": 400, "resamples": 20}
    for pair in rank(vision, text, **options).pairs:
        x, y = vision[pair.vision].encoder.function, text[pair.text].encoder.function
        expected = measure_alignment(x(PICTURES), y(TEXTS), **options)
        assert pair.scores["cka"].chance == pytest.approx(expected.chance, abs=0.01)
        assert pair.scores["cka"].p_value == pytest.approx(expected.p_value, abs=0.1)
        assert pair.scores["cka"].calibrated == pytest.approx(expected.calibrated, abs=0.03)


def test_pair_that_shares_a_latent_wins():
    ranking = rank(*planted(), metrics=("cka", "mutual_knn"))
    assert (ranking.best.vision, ranking.best.text) == ("near", "words")
    assert ranking.best.scores["cka"].calibrated > 0.5
    for pair in ranking.pairs[1:]:
        assert pair.scores["cka"].p_value > 0.025 and pair.scores["cka"].calibrated < 0.1
        assert pair.scores["mutual_knn"].value < ranking.best.scores["mutual_knn"].value


@pytest.mark.parametrize("metrics", [("cka", "mutual_knn"), ("mutual_knn", "cka")])
def test_first_metric_decides_the_order(metrics):
    vision = {str(seed): frozen(Planted(seed % 3, seed), "image") for seed in range(4)}
    ranking = rank(vision, {str(seed): frozen(Planted(0, 10 + seed), "text") for seed in range(2)}, metrics=metrics)
    values = [pair.scores[metrics[0]].value for pair in ranking.pairs]
    assert len(values) == 8 and values == sorted(values, reverse=True)
    assert ranking.metrics == list(metrics)


def test_measures_may_be_names_or_objects():
    ranking = rank(*planted(), metrics=("cka", MutualKNN(3), CKNNA(4)))
    assert ranking.metrics == ["cka", "mutual_knn", "cknna"]
    vision, text = planted()
    x, y = vision["near"].encoder.function(PICTURES), text["words"].encoder.function(TEXTS)
    assert ranking.best.scores["mutual_knn"].value == pytest.approx(mutual_knn(x, y, 3))


def test_every_encoder_reads_the_data_once():
    vision, text = planted()
    rank(vision, text, metrics=("cka", "mutual_knn"), batch_size=5)
    for encoder in (*vision.values(), *text.values()):
        seen = encoder.encoder.function.seen
        assert [seen[number] for number in range(16, N)] == [1] * (N - 16)  # those before are what its speed is told by


def test_measures_describe_every_space_once_for_all_its_pairs():
    described = []

    class Counting(MutualKNN):
        def measure_many(self, spaces, pairs):
            raise AssertionError("so few items are described by matrices")

        def kernel(self, x):
            described.append(x.shape)
            return super().kernel(x)

    vision, text = planted()
    rank(vision, text, metrics=[Counting(3)])
    assert len(described) == 2 * 4  # once for the measure, once for its null and interval


def test_costs_are_those_of_the_encoders_of_each_side(dinov2_folder, bert_folder, monkeypatch):
    monkeypatch.setattr(candidates, "settled_seconds", lambda run: run() or 0.032)
    vision = {"x": frozen(Planted(0, 1), "image", parameters=10), "dino": dinov2_folder}
    text = {"x": frozen(Planted(0, 2), "text", parameters=3), "bert": bert_folder}
    rows = {(row["vision"], row["text"]): row for row in rank(vision, text).table()}
    real = [(e.num_parameters(), e.get_embedding_dimension()) for e in map(FrozenEncoder, (dinov2_folder, bert_folder))]
    for names, (image, caption) in {("x", "x"): ((10, 6), (3, 6)), ("dino", "bert"): real}.items():
        found = rows[names]
        assert (found["vision_parameters"], found["vision_dim"]) == image
        assert (found["text_parameters"], found["text_dim"]) == caption
        assert found["vision_milliseconds"] == found["text_milliseconds"] == 2  # of 16 items


def test_an_encoder_is_timed_on_one_item_of_each_of_sixteen_pairs(monkeypatch):
    monkeypatch.setattr(candidates, "settled_seconds", lambda run: run() or 1)
    vision, text = planted()
    rank(vision, text, [(image, [caption] * 3) for image, caption in PAIRS])
    for side, count in ((vision, 1), (text, 3)):
        assert all(sum(e.encoder.function.seen.values()) == count * N + 16 for e in side.values())


@pytest.mark.parametrize(
    ("durations", "found"),
    [
        ([9, 9, 9, 9, 2], 2),
        ([9, 7, 5, 4, 3, 2], 2),
        ([2], 2),
        ([9, 9, 2, 3, 3, 3, 3], 2),
        ([2**-k for k in range(60)], 2**-49),  # it ends
    ],
)
def test_an_encoder_is_timed_until_its_runs_settle(monkeypatch, durations, found):
    """What they take first, while the machine wakes up, is not what they cost."""
    left, now = iter([100, *durations, *[2] * 9]), [0.0]
    monkeypatch.setattr(candidates.time, "perf_counter", lambda: now[0])
    assert candidates.settled_seconds(lambda: now.append(now.pop() + next(left))) == pytest.approx(found)


def test_sides_may_be_of_any_modality():
    data = [{"sound": number, "image": image} for number, image in enumerate(PICTURES)]
    sounds = {"a": frozen(lambda items: Planted(0, 5).vectors[items], "sound")}
    ranking = rank(frozen(Planted(0, 2), "image"), sounds, data)  # one may stand alone
    assert ranking.best.scores["cka"].p_value == 1 / 40


# Layers


@pytest.mark.parametrize("metric", [linear_cka, mutual_knn], ids=["cka", "mutual_knn"])
def test_layers_are_those_most_alike_by_the_first_metric(dinov2_folder, bert_folder, metric):
    name = {linear_cka: "cka", mutual_knn: "mutual_knn"}[metric]
    layers = []
    for folder, items in ((dinov2_folder, PICTURES), (bert_folder, TEXTS)):
        encoder = FrozenEncoder(folder)
        with torch.no_grad():
            found = encoder.encoder.forward_layers(encoder.preprocess(items))
        layers.append([default_pooling(encoder)(with_tokens(features))["sentence_embedding"] for features in found])
    values = np.array([[metric(x, y) for y in layers[1]] for x in layers[0]])
    best = tuple(int(k) + 1 for k in np.unravel_index(values.argmax(), values.shape))
    ranking = rank([dinov2_folder], [bert_folder], layers="all", metrics=(name, "rsa"))
    assert ranking.best.layers == best
    assert ranking.best.scores[name].value == pytest.approx(values.max(), abs=1e-6)
    chosen = [FrozenEncoder(folder, layer=k) for folder, k in zip((dinov2_folder, bert_folder), best)]
    again = rank({dinov2_folder: chosen[0]}, {bert_folder: chosen[1]}, metrics=(name, "rsa"))
    assert_same(ranking, again, abs=1e-5)


class Layered(Encoder):
    """An encoder of texts whose layers are functions."""

    modality, dim, has_cls, preprocessing = "text", 6, False, {}

    def __init__(self, *functions) -> None:
        super().__init__()
        self.functions = functions

    def preprocess(self, items):
        return {"inputs": items}

    def forward_layers(self, batch):
        return [{"sentence_embedding": torch.as_tensor(function(batch["inputs"]))} for function in self.functions]

    def forward(self, batch):
        return self.forward_layers(batch)[-1]

    def fingerprint(self):
        return "layers"


def ones(items: list) -> np.ndarray:
    return np.ones((len(items), 6), np.float32)


ORDERS = [*itertools.permutations((0, 1, 2)), (None, 0, 2), (0, None, 2), (None, 2, None, 0)]


@pytest.mark.parametrize("latents", ORDERS)
def test_layer_with_the_shared_latent_is_found_wherever_it_is(latents):
    """``None`` is a layer that is constant."""
    layers = [ones if latent is None else Planted(latent, 7 + latent) for latent in latents]
    vision = {0: frozen(Planted(0, 2), "image"), 2: frozen(Planted(2, 3), "image")}
    ranking = rank(vision, [FrozenEncoder(Layered(*layers))], layers="all")
    assert {pair.vision: pair.layers for pair in ranking.pairs} == {k: (1, latents.index(k) + 1) for k in vision}


def test_layers_of_functions_are_their_only_one():
    vision, text = planted()
    ranking = rank(vision, text, layers="all")
    assert {pair.layers for pair in ranking.pairs} == {(1, 1)}
    assert_same(ranking, rank(vision, text))


# How many items


def test_only_measures_that_need_all_pairs_of_items_read_a_sample():
    vision, text = planted()
    ranking = rank(vision, text, metrics=("mutual_knn", "cka", "procrustes"), max_items=20)
    everything = rank(vision, text, metrics=("cka", "procrustes"))
    for pair in ranking.pairs:
        assert {name: score.n for name, score in pair.scores.items()} == {"mutual_knn": 20, "cka": N, "procrustes": N}
        assert all(score.sampled == 20 for score in pair.scores.values())
    values = {(p.vision, p.text): p.scores["cka"].value for p in ranking.pairs}
    assert values == {(p.vision, p.text): p.scores["cka"].value for p in everything.pairs}


def test_sample_is_of_pairs():
    drawn = []

    class Watching(MutualKNN):
        def measure_pairs(self, xs, ys, pairs):
            drawn.extend(rows.all().numpy() for rows in (*xs, *ys))
            return super().measure_pairs(xs, ys, pairs)

    image, text = Planted(0, 2), Planted(0, 3)
    ranking = rank(
        {"near": frozen(image, "image")}, {"words": frozen(text, "text")}, metrics=[Watching(3)], max_items=20
    )
    numbers = [[int((own.vectors == row).all(1).argmax()) for row in rows] for own, rows in zip((image, text), drawn)]
    assert numbers[0] == numbers[1] and len(set(numbers[0])) == 20 and numbers[0] != list(range(20))
    expected = mutual_knn(image.vectors[numbers[0]], text.vectors[numbers[0]], 3)
    assert ranking.best.scores["mutual_knn"].value == pytest.approx(expected)


def test_seed_decides_the_sample_the_shuffles_and_the_halves():
    vision, text = planted()
    options = {"metrics": ("cka", "mutual_knn"), "max_items": 25}
    first, same, other = (scores_of(rank(vision, text, seed=seed, **options)) for seed in (3, 3, 4))
    assert first == same
    pair = ("near", "words")
    for key in (("cka", "chance"), ("cka", "low"), ("mutual_knn", "value"), ("mutual_knn", "chance")):
        assert first[pair + key] != other[pair + key]
    assert first[(*pair, "cka", "value")] == other[(*pair, "cka", "value")]


def test_other_encoders_and_their_order_change_no_score():
    vision, text = planted()
    options = {"metrics": ("cka", "mutual_knn"), "max_items": 25}
    ranking = rank(vision, text, **options)
    assert_same(ranking, rank(dict(reversed(vision.items())), dict(reversed(text.items())), **options))
    alone = scores_of(rank({"near": vision["near"]}, {"words": text["words"]}, **options))
    together = scores_of(ranking)
    assert alone == pytest.approx({key: together[key] for key in alone}, abs=1e-6)


# Data


def collate(batch):
    return [image for image, _ in batch], [text for _, text in batch]


def test_form_of_the_data_changes_nothing(tmp_path):
    for number, image in enumerate(PICTURES):
        image.save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{text}" for number, text in enumerate(TEXTS)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,text", *rows]))
    forms = {
        "dicts": [{"text": text, "image": image, "other": 0} for image, text in PAIRS],
        "arrays": [(np.asarray(image), [text]) for image, text in PAIRS],
        "loader": DataLoader(PAIRS, batch_size=7, collate_fn=collate),
        "path": tmp_path / "pairs.csv",
        "name": str(tmp_path / "pairs.csv"),
        "columns": {"image": PICTURES, "text": TEXTS},
        "table": DataFrame({"image": PICTURES, "text": TEXTS}),
    }
    vision, text = planted()
    expected = rank(vision, text, metrics=("cka", "mutual_knn"))
    for data in forms.values():
        assert_same(rank(vision, text, data, metrics=("cka", "mutual_knn"), batch_size=9), expected)


def test_several_captions_count_as_their_mean():
    image, text = Planted(0, 2), Planted(0, 3)
    captions = [[f"{number} a", f"{number + 9} b", f"{number + 4} c"][: 1 + number % 3] for number in range(N)]
    means = np.stack([text(list(several)).mean(0) for several in captions])
    ranking = rank({"near": frozen(image, "image")}, {"words": frozen(text, "text")}, list(zip(PICTURES, captions)))
    assert ranking.best.scores["cka"].value == pytest.approx(linear_cka(image(PICTURES), means), abs=1e-6)


# What fails


class Picky(Planted):
    """Fails on some numbers, or gives NaN for them."""

    def __init__(self, *bad: int, value: float | None = None) -> None:
        super().__init__(0, 3)
        self.bad, self.value = set(bad), value

    def __call__(self, items):
        found = super().__call__(items)
        for row, number in enumerate(map(number_of, items)):
            if number in self.bad and self.value is None:
                raise RuntimeError(f"no {number}, please")
            found[row] = self.value if number in self.bad else found[row]
        return found


def changed(**items) -> list:
    """The pairs, some of whose items are others: ``image5=…`` is the picture of pair 5."""
    data = [list(pair) for pair in PAIRS]
    for place, item in items.items():
        side = "image" if place.startswith("image") else "text"
        data[int(place.removeprefix(side))][side == "text"] = item
    return [tuple(pair) for pair in data]


def test_items_that_fail_are_left_out_for_every_encoder_and_listed(caplog):
    vision, text = planted()
    text |= {"picky": frozen(Picky(9, 21), "text"), "nan": frozen(Picky(30, value=np.nan), "text")}
    data = changed(image5=b"nothing", text20="  ", image3=b"", text12=[])
    with caplog.at_level(logging.WARNING):
        ranking = rank(vision, text, data, metrics=("cka", "mutual_knn"))
    listed = {(entry.encoder, entry.index) for entry in ranking.left_out}
    both = {(name, index) for name in vision for index in (3, 5)} | {
        (name, index) for name in text for index in (12, 20)
    }
    assert listed == both | {("picky", 9), ("picky", 21), ("nan", 30)}
    assert {entry.encoder: entry.reason for entry in ranking.left_out}["nan"].endswith("gave NaN or Inf for it.")
    bad = {index for _, index in listed}
    assert f"{len(bad)} of {N} items are left out" in caplog.text
    assert ranking.best.scores["cka"].n == N - len(bad)
    lines = ranking.left_out_summary()
    assert len(lines) == 6 and lines[0].startswith("Left out: 2 items for the image encoder 'far'; the first is 3: ")
    rest = [pair for number, pair in enumerate(PAIRS) if number not in bad]
    expected = rank(vision, {name: frozen(Planted(0, 3), "text") if name in ("picky", "nan") else encoder
                             for name, encoder in text.items()}, rest, metrics=("cka", "mutual_knn"))  # fmt: skip
    assert_same(ranking, expected)


class Broken(Planted):
    """Fails on everything."""

    def __call__(self, items):
        raise RuntimeError("out of order")


FAILING = {
    "no such name": ("dinov2-lrge", "ValueError: .*did you mean 'dinov2-large'"),
    "always": (frozen(Broken(0, 3), "image"), "RuntimeError: out of order"),
    "nan": (frozen(Picky(*range(50), value=np.nan), "image"), "ValueError: there is no pair .* gave NaN or Inf"),
    "flat": (frozen(ones, "image"), "ValueError: .*'flat' is constant"),
}


@pytest.mark.parametrize("layers", ["last", "all"])
def test_encoders_that_fail_are_listed_and_the_others_ranked(caplog, tmp_path, layers):
    vision, text = planted()
    failing = {name: encoder for name, (encoder, _) in FAILING.items()}
    with caplog.at_level(logging.WARNING):
        ranking = rank({"no such name": "", **vision} | failing, text, layers=layers)
    assert_same(ranking, rank(vision, text, layers=layers))
    assert [(entry.encoder, entry.modality, entry.index) for entry in ranking.left_out] == [
        (name, "image", None) for name in FAILING
    ]
    for entry, line in zip(ranking.left_out, ranking.left_out_summary()):
        assert re.match(FAILING[entry.encoder][1], entry.reason), entry
        assert line == f"Left out: the image encoder '{entry.encoder}': {entry.reason}"
        assert f"the image encoder '{entry.encoder}' is left out: " in caplog.text
    ranking.save(tmp_path)
    written = json.loads((tmp_path / "ranking.json").read_text())["left_out"]
    assert written == [asdict(entry) for entry in ranking.left_out]


@pytest.mark.parametrize("name", FAILING)
def test_where_all_fail_or_in_strict_the_first_failure_is_raised(name):
    encoder, message = FAILING[name]
    for vision, options in (({name: encoder}, {}), ({**planted()[0], name: encoder}, {"strict": True})):
        with pytest.raises((ValueError, RuntimeError)) as found:
            rank(vision, planted()[1], **options)
        assert options or re.match(message, f"{found.type.__name__}: {found.value}")


def test_strict_raises_at_the_first_bad_item():
    for data, message in ((changed(image5=b"nothing"), "pair 5: "), (changed(text20=" "), "pair 20: ")):
        with pytest.raises(ValueError, match=message):
            rank(*planted(), data, strict=True)


# Features from stores


def test_second_call_finds_the_features_of_the_first(tmp_path):
    vision, text = planted()
    text["near"] = text.pop("letters")  # one name on both sides
    first = rank(vision, text, path=tmp_path / "new" / "features")
    assert len(list((tmp_path / "new" / "features").glob("*-*"))) == 4
    text["late"] = frozen(Planted(0, 9), "text")
    second = rank(vision, text, path=tmp_path / "new" / "features")
    for encoder in (*vision.values(), *text.values()):
        assert encoder.encoder.function.seen[N - 1] == 1
    found, expected = scores_of(second), scores_of(first)
    assert {key: found[key] for key in expected} == expected
    assert_same(first, rank(vision, {name: text[name] for name in ("words", "near")}), abs=2e-3)
    assert {len(FeatureStore.open(folder)) for folder in tmp_path.glob("new/features/*-*")} == {N}


def test_other_weights_or_preprocessing_have_features_of_their_own(dinov2_folder, tmp_path):
    text = {"words": frozen(Planted(0, 3), "text")}
    versions = [frozen(Planted(latent, 2), "image", fingerprint=f"weights {latent}") for latent in (0, 1)]
    versions += [FrozenEncoder(dinov2_folder, image_size=size) for size in (28, 14)]
    values = {rank({"a/b ü": v}, text, path=tmp_path).best.scores["cka"].value for v in versions}
    assert len(values) == 4
    assert len(list(tmp_path.glob("*-*"))) == 5


def test_last_and_all_layers_share_a_folder(dinov2_folder, tmp_path):
    text = {"words": frozen(Planted(0, 3), "text")}
    every = rank([dinov2_folder], text, path=tmp_path, layers="all")
    last = rank([dinov2_folder], text, path=tmp_path)
    assert last.best.layers is None
    assert_same(last, rank([dinov2_folder], text), abs=2e-3)
    assert_same(rank([dinov2_folder], text, path=tmp_path, layers="all"), every)


@pytest.mark.parametrize("other", [PAIRS[:20], PAIRS[::-1]], ids=["fewer", "reordered"])
def test_features_of_other_data_are_not_taken_for_these(tmp_path, other):
    vision, text = {"near": frozen(Planted(0, 2), "image")}, {"words": frozen(Planted(0, 3), "text")}
    rank(vision, text, path=tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"features of these pairs in this order .* was begun with .*sha256"):
        rank(vision, text, other, path=tmp_path)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("thesis.tex", "", FileExistsError, "holds 'thesis"),
        ("data.json", "", ValueError, "data.json: not valid JSON"),
        ("data.json", "[1]", ValueError, "holds no object"),
        ("data.json", "[" * 100_000, ValueError, "data.json: not valid JSON"),
        ("data.json", '{"pairs": "36", "sha256": {"a": []}}', ValueError, "pairs = 36, this run has 36; sha256 = .*a"),
        ("data.json", "{}", ValueError, "pairs = None, this run has 36"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, name, content, error, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        rank(*planted(), path=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("level", ["pooled", "tokens"])
def test_store_stands_for_its_encoder(dinov2_folder, bert_folder, level):
    store = extract(dinov2_folder, bert_folder, PAIRS, level)
    expected = rank({"v": dinov2_folder}, {"t": bert_folder}, metrics=("cka", "mutual_knn"))
    ranking = rank({"v": store}, {"t": store}, None, metrics=("cka", "mutual_knn"))
    assert_same(ranking, expected, abs=1e-5)
    cost = ranking.vision_costs["v"]
    assert (cost.parameters, cost.milliseconds, cost.dim) == (None, None, 24)


def test_store_and_encoder_can_be_mixed_and_stores_have_their_encoders_names():
    image, text = frozen(Planted(0, 2), "image"), frozen(Planted(0, 3), "text")
    ranking = rank([extract(image, text, PAIRS)], {"words": text})
    assert (ranking.best.vision, ranking.best.text) == ("CallableEncoder", "words")
    assert_same(ranking, rank({"CallableEncoder": image}, {"words": text}))


def test_items_of_stores_are_matched_by_id(caplog):
    image, text = frozen(Planted(0, 2), "image"), frozen(Planted(0, 3), "text")
    order = np.random.default_rng(0).permutation(N)
    pairs = named()
    one, other = extract(image, text, pairs), extract(image, text, [pairs[i] for i in order])
    expected = linear_cka(image.encoder.function(PICTURES), text.encoder.function(TEXTS))
    assert rank({"v": one}, {"t": other}, None).best.scores["cka"].value == pytest.approx(expected, abs=1e-6)
    assert "left out" not in caplog.text
    part = rank({"v": one.select(np.arange(30))}, {"t": other}, None)
    assert part.best.scores["cka"].n == 30 and f"6 of {N} items are left out" in caplog.text
    expected = linear_cka(image.encoder.function(PICTURES[:30]), text.encoder.function(TEXTS[:30]))
    assert part.best.scores["cka"].value == pytest.approx(expected, abs=1e-6)


# What is refused


VISION, TEXT = planted()
HEARD = [{"image": image, "sound": text, "text": text} for image, text in PAIRS]
TWO_LAYERS = FrozenEncoder(Layered(Planted(0, 3), Planted(1, 3)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": iter(PAIRS)}, "an iterator only once: pass a list"),
        ({"vision": {}}, "no image encoder to compare"),
        ({"text": []}, "no text encoder to compare"),
        ({"metrics": ("ckaa",)}, "no measure is called 'ckaa'; there are cka, "),
        ({"metrics": ()}, "at least one metric"),
        ({"layers": "middle"}, "'last' or 'all', got 'middle'"),
        ({"data": None}, "'far' is an encoder: pass data"),
        ({"vision": list(VISION.values())}, r"two image encoders have one name.*\{'name': encoder"),
        ({"data": PAIRS[:3]}, "at least 4 items are needed, got 3"),
        ({"data": PAIRS[:11], "metrics": ("mutual_knn",)}, "at least 12 items are needed, got 11"),
        ({"data": []}, "no pair that can be read. The data is empty"),
        ({"data": [(b"x", "1 a"), (b"y", "2 b")]}, "no pair that can be read. pair 0: "),
        ({"data": "no/such/folder"}, "no/such/folder"),
        ({"data": [{"image": PICTURES[0], "caption": "1"}]}, r"\['text'\] missing"),
        ({"vision": ["dinov2-lrge"]}, "did you mean 'dinov2-large'"),
        ({"vision": ["dinov2-lrge"], "data": [{"image": PICTURES[0], "caption": "1"}]}, r"\['text'\] missing"),
        ({"text": {"flat": frozen(ones, "text")}}, "'flat' is constant: all its 36 vectors are equal"),
        ({"text": {"flat": frozen(ones, "text")}, "layers": "all"}, "'flat' is constant"),
        (
            {"text": {"t": TWO_LAYERS}, "data": PAIRS[:8], "metrics": ["mutual_knn"], "layers": "all"},
            "12 items.* got 8",
        ),
        ({"text": {"t": VISION["near"]}}, r"of image, not of text|both sides"),
        ({"text": {"s": frozen(len, "sound"), "t": TEXT["words"]}, "data": HEARD}, "encoder of text, .*sound"),
        ({"metrics": [MutualKNN(3), MutualKNN(10)]}, "each only once"),
        ({"data": [{"id": i // 2, "image": x, "text": y} for i, (x, y) in enumerate(PAIRS)]}, "two items .* id '0'"),
        ({"data": DataLoader(PAIRS, batch_size=6, shuffle=True, collate_fn=collate)}, "pass shuffle=False"),
        ({"max_items": 3}, "max_items must be at least 4"),
        ({"max_items": -1}, "max_items must be at least 4"),
        ({"permutations": 0}, "permutations must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_ranked_is_refused(changed, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        rank(**{"vision": VISION, "text": TEXT, **changed})


def test_stores_that_do_not_fit_are_refused():
    store = extract(VISION["near"], TEXT["words"], named())
    texts = FreezeAlign([TEXT["words"]], dim=8, device="cpu").extract_features([{"text": text} for text in TEXTS])
    for kept, options, message in [
        (store, {"layers": "all"}, r"'kept' is a feature store.*name the encoder instead"),
        (store, {}, r"\['kept', 'words', 'letters'\] have no item id in common"),
        (texts, {}, r"has no image features; it has \['text'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            rank({"kept": kept}, TEXT, **options)


# Vectors of stores


@pytest.mark.parametrize("modality", ["image", "text"])
def test_tokens_are_pooled_as_pooled_stores_are(dinov2_folder, bert_folder, modality):
    stores = [extract(dinov2_folder, bert_folder, PAIRS, level) for level in ("pooled", "tokens")]
    folder, items = {"image": (dinov2_folder, PICTURES), "text": (bert_folder, TEXTS)}[modality]
    encoder = FrozenEncoder(folder)
    index = np.array([7, 3, 3, 30])
    features = encoder(encoder.preprocess([items[i] for i in index]))
    mask = features.get("attention_mask", torch.empty(0))[..., None]
    tokens = features["token_embeddings"]
    expected = features["cls_token_embeddings"] if modality == "image" else (tokens * mask).sum(1) / mask.sum(1)
    for store in stores:
        rows = StoreVectors(store, modality, index)
        assert len(rows) == 4
        torch.testing.assert_close(rows.all(), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(rows.take(np.array([3, 0])), expected[[3, 0]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("level", ["pooled", "tokens"])
def test_rows_of_an_item_are_averaged(level):
    text = Planted(0, 3)
    captions = [[f"{number} a", f"{number + 5} b", f"{number + 9} c"][: 1 + number % 3] for number in range(9)]
    store = extract(frozen(Planted(0, 2), "image"), frozen(text, "text"), list(zip(PICTURES, captions)), level)
    expected = np.stack([text.vectors[[number_of(caption) for caption in several]].mean(0) for several in captions])
    index = np.array([8, 0, 4, 5])
    np.testing.assert_allclose(StoreVectors(store, "text", index).all(), expected[index], atol=1e-6)
    np.testing.assert_allclose(StoreVectors(store, "text", index, slice(2, 4)).all(), expected[index, 2:4], atol=1e-6)


@pytest.mark.parametrize(("dtype", "loss"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 1 / 250)])
def test_stores_of_fewer_bits_give_nearly_the_same_rows_and_scores(dtype, loss, tmp_path):
    image, text = Planted(0, 2), Planted(0, 3)
    encoders = frozen(image, "image"), frozen(text, "text")
    store = extract(*encoders, PAIRS, path=tmp_path / dtype, dtype=dtype)
    rows = StoreVectors(store, "image", np.arange(N)).all()
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows, image.vectors[:N], atol=loss * float(abs(image.vectors).max()) + 1e-6)
    value = rank({"v": store}, {"t": store}, None).best.scores["cka"].value
    assert value == pytest.approx(linear_cka(image(PICTURES), text(TEXTS)), abs=loss)
