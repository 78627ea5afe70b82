"""A ranking in words, as a table, as a picture and on disk."""

from __future__ import annotations

import json
import math

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from freezealign.alignment import AlignmentScore, PairRanking, RankedPair
from freezealign.alignment.candidates import Cost

NAN = math.nan


def score(metric: str, value: float, spread: float = 0.05, p: float = 0.005, n: int = 2000) -> AlignmentScore:
    return AlignmentScore(metric, value, n, value - spread, value + spread, 0.01, 0.02, p, value / 2, min(n, 1000))


COSTS = {
    "large": Cost(300_000_000, 12.345, 1024),
    "small": Cost(20_000_000, 1.5, 384),
    "words": Cost(100_000_000, 2.0, 768),
    "letters": Cost(5_000_000, 0.25, 64),
}
VALUES = {("large", "words"): 0.5, ("large", "letters"): 0.2, ("small", "words"): 0.45, ("small", "letters"): 0.3}


def make(values=VALUES, costs=COSTS, layers=None, **options) -> PairRanking:
    """A ranking by CKA whose mutual_knn says the opposite."""
    pairs = []
    for names, value in values.items():
        scores = score("cka", value, **options), score("mutual_knn", 1 - value, n=500)
        pairs.append(RankedPair(*names, layers, {each.metric: each for each in scores}))
    sides = ({names[side]: costs[names[side]] for names in values} for side in (0, 1))
    return PairRanking(pairs, *sides)


# Order


def test_pairs_are_sorted_by_the_first_metric():
    ranking = make()
    assert [(pair.vision, pair.text) for pair in ranking.pairs] == [
        ("large", "words"),
        ("small", "words"),
        ("small", "letters"),
        ("large", "letters"),
    ]
    assert ranking.best is ranking.pairs[0]
    assert ranking.metrics == ["cka", "mutual_knn"]
    assert (list(ranking.vision_costs), list(ranking.text_costs)) == (["large", "small"], ["words", "letters"])


def test_representation_names_the_best():
    assert repr(make()) == "PairRanking(2 x 2, best: large + words)"


# In words


def test_recommendation_names_the_best_pair_and_its_score():
    words = make(spread=0.001).recommendation()
    assert words.startswith("Predicted to align best: large + words (cka 0.500 [0.499, 0.501], n = 2,000; ")
    assert "chance" in words and "not above chance" not in words and "million" not in words


def test_recommendation_says_when_nothing_is_above_chance():
    assert "not above chance" in make(dict.fromkeys(VALUES, 0.0)).recommendation()
    assert "not above chance" not in make(p=0.09).recommendation()  # of ten shuffles none reached it


def test_recommendation_names_the_smallest_pair_within_the_intervals():
    assert "small + words (0.450) is within the intervals, with 120 instead of 400 million" in make().recommendation()
    assert "small + letters (0.300)" in make(spread=0.11).recommendation()
    assert "million" not in make(spread=0.02).recommendation()


def test_recommendation_names_no_larger_pair():
    values = {("small", "words"): 0.5, ("large", "words"): 0.49}
    assert "million" not in make(values).recommendation()


def test_a_pair_of_nearly_the_size_of_the_best_is_not_worth_a_word():
    costs = {**COSTS, "small": Cost(270_000_000, 1.5, 384)}  # 370 of 400 million
    assert "million" not in make({("large", "words"): 0.5, ("small", "words"): 0.49}, costs).recommendation()


@pytest.mark.parametrize("unknown", ["small", "large"])
def test_pairs_of_unknown_size_are_never_called_smaller(unknown):
    words = make({("large", "words"): 0.5, ("small", "words"): 0.45}, {**COSTS, unknown: Cost(None, None, 8)})
    assert ("small + words" in words.recommendation()) == (unknown == "large")


def test_recommendation_without_intervals_names_the_best_alone():
    words = make(spread=NAN).recommendation()
    assert "large + words (cka 0.500, n = 2,000;" in words and "nan" not in words and "million" not in words


# As a table


def test_table_has_a_row_a_pair_with_every_number():
    rows = make().table()
    assert [(row["vision"], row["text"], row["cka"]) for row in rows[:2]] == [
        ("large", "words", 0.5),
        ("small", "words", 0.45),
    ]
    assert rows[1] == {
        "vision": "small",
        "text": "words",
        "vision_parameters": 20_000_000,
        "vision_milliseconds": 1.5,
        "vision_dim": 384,
        "text_parameters": 100_000_000,
        "text_milliseconds": 2.0,
        "text_dim": 768,
        **{"cka": 0.45, "cka_n": 2000, "cka_low": 0.4, "cka_high": 0.5, "cka_chance": 0.01, "cka_threshold": 0.02},
        **{"cka_p_value": 0.005, "cka_calibrated": 0.225, "cka_sampled": 1000},
        **{"mutual_knn": 0.55, "mutual_knn_n": 500, "mutual_knn_low": 0.5, "mutual_knn_high": pytest.approx(0.6)},
        **{"mutual_knn_chance": 0.01, "mutual_knn_threshold": 0.02, "mutual_knn_p_value": 0.005},
        **{"mutual_knn_calibrated": 0.275, "mutual_knn_sampled": 500},
    }


def test_table_has_layers_where_they_were_compared():
    assert "vision_layer" not in make().table()[0]
    row = make(layers=(7, 3)).table()[0]
    assert (row["vision_layer"], row["text_layer"]) == (7, 3)


def test_data_frame_is_the_table():
    ranking = make(layers=(7, 3))
    frame = ranking.to_pandas()
    assert list(frame.columns) == list(ranking.table()[0])
    assert frame.to_dict("records") == ranking.table()


def test_summary_shows_scores_with_half_their_interval():
    header, rows = make().summary()
    assert header == ["vision", "text", "cka\nn = 2,000", "mutual_knn\nn = 500", "cka\ncalibrated"]
    assert rows[1] == ["small", "words", "0.450±0.050", "0.550±0.050", "0.225"]
    assert [row[0] for row in rows] == ["large", "small", "small", "large"]


def test_summary_names_layers_where_they_were_compared():
    assert make(layers=(7, 3)).summary()[1][0][:2] == ["large, layer 7", "words, layer 3"]


def test_cost_summary_has_a_row_an_encoder():
    header, rows = make(costs={**COSTS, "words": Cost(None, None, 12_345)}).cost_summary()
    assert len(header) == 4
    assert rows == [
        ["large", "300.0 M", "12.3", "1,024"],
        ["small", "20.0 M", "1.5", "384"],
        ["words", "unknown", "unknown", "12,345"],
        ["letters", "5.0 M", "0.2", "64"],
    ]


# As a picture


def texts_of(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_plot_has_a_map_for_each_metric_with_vision_encoders_as_rows():
    figure = make().plot()
    assert isinstance(figure, Figure)
    cka, knn = figure.axes
    assert cka.get_title() == "cka, n = 2,000" and knn.get_title() == "mutual_knn, n = 500"
    np.testing.assert_allclose(np.asarray(cka.images[0].get_array()), [[0.5, 0.2], [0.45, 0.3]])
    np.testing.assert_allclose(np.asarray(knn.images[0].get_array()), [[0.5, 0.8], [0.55, 0.7]])
    assert [label.get_text() for label in cka.get_yticklabels()] == ["large\n300 M", "small\n20 M"]
    assert [label.get_text() for label in cka.get_xticklabels()] == ["words\n100 M", "letters\n5 M"]
    shown = {text.get_position(): text.get_text() for text in cka.texts}
    assert shown == {(0, 0): "0.500", (1, 0): "0.200", (0, 1): "0.450", (1, 1): "0.300"}


def test_best_value_of_each_map_is_framed():
    for axes, expected in zip(make().plot().axes, [(0, 0), (1, 0)]):
        [frame] = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert (frame.get_x() + 0.5, frame.get_y() + 0.5) == expected


def test_colours_use_the_range_of_each_map():
    figure = make().plot()
    assert [axes.images[0].get_clim() for axes in figure.axes] == [(0.2, 0.5), (0.5, 0.8)]
    below = make({("large", "words"): 0.5, ("small", "words"): -0.3}).plot()
    assert below.axes[0].images[0].get_clim() == (-0.3, 0.5)


def test_numbers_are_read_on_every_colour():
    for axes in make().plot().axes:
        for text in axes.texts:
            red, green, blue, _ = axes.images[0].to_rgba(float(text.get_text()))
            assert text.get_color() == ("black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white")
        assert {text.get_color() for text in axes.texts} == {"black", "white"}


def test_plot_names_layers_and_leaves_out_unknown_sizes():
    axes = make(costs={**COSTS, "words": Cost(None, None, 8)}, layers=(7, 3)).plot().axes[0]
    assert texts_of(axes)[0] == "0.500\n7 × 3"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["words", "letters\n5 M"]


def test_plot_of_one_pair_is_saved(tmp_path):
    for name in ("pair.png", "pair", "pair.jpg", "new/pair.png"):
        make({("large", "words"): 0.01}).plot(tmp_path / name)
        assert matplotlib.image.imread(tmp_path / (name if "." in name else "pair.png")).ndim == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "pair.jpg", "pair.png"]


# On disk


def no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_saving_writes_numbers_words_and_a_picture(tmp_path):
    ranking = make(layers=(7, 3))
    ranking.save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["ranking.json", "ranking.png"]
    written = json.loads((tmp_path / "new" / "folder" / "ranking.json").read_text(), parse_constant=no_json)
    assert written == {
        "metrics": ["cka", "mutual_knn"],
        "recommendation": ranking.recommendation(),
        "pairs": ranking.table(),
        "left_out": [],
    }
    picture = matplotlib.image.imread(tmp_path / "new" / "folder" / "ranking.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 10


def test_saving_again_replaces_what_is_there(tmp_path):
    make().save(tmp_path)
    make({("small", "letters"): 0.9}).save(tmp_path)
    assert [row["cka"] for row in json.loads((tmp_path / "ranking.json").read_text())["pairs"]] == [0.9]


def test_what_is_written_is_json_without_intervals_too(tmp_path):
    make(spread=NAN).save(tmp_path)
    [first, *_] = json.loads((tmp_path / "ranking.json").read_text(), parse_constant=no_json)["pairs"]
    assert first["cka_low"] is None


def test_summary_without_intervals_shows_the_score_alone():
    assert "nan" not in str(make(spread=NAN).summary())
