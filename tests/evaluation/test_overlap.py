"""Intersection over union, by the standard rule and by that of the paper's code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from freezealign.evaluation import metrics
from freezealign.evaluation.overlap import IGNORED, BinaryIoU, MeanIoU


def random_pictures(classes: int, seed: int, highest: int | None = None):
    """Maps and masks of several sizes, with a tenth of ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    for size in ((7, 9), (12, 5), (1, 1), (20, 20)):
        maps = torch.rand(classes, *size, generator=generator)
        truth = torch.randint(0, highest or classes, size, generator=generator)
        truth[torch.rand(size, generator=generator) < 0.1] = IGNORED
        yield maps, truth


@pytest.mark.parametrize("seed", range(3))
def test_mean_iou_equals_torchmetrics(seed):
    oracle = pytest.importorskip("torchmetrics.classification")
    classes = 6
    kinds = {
        average: oracle.MulticlassJaccardIndex(classes, average=average, ignore_index=IGNORED)
        for average in ("macro", "none")
    }
    ours = MeanIoU(classes)
    for maps, truth in random_pictures(classes, seed):
        predicted = ours.add(maps, truth)
        torch.testing.assert_close(predicted, maps.argmax(0))
        for metric in kinds.values():
            metric.update(predicted.flatten(), truth.flatten())
    scores = ours.scores()
    assert scores["miou"] == pytest.approx(float(kinds["macro"].compute()), abs=1e-6)
    np.testing.assert_allclose(scores["class_iou"], kinds["none"].compute().numpy(), atol=1e-6)


def test_background_below_a_probability_equals_torchmetrics():
    oracle = pytest.importorskip("torchmetrics.classification")
    classes, threshold = 5, 0.6
    metric, ours = oracle.MulticlassJaccardIndex(classes + 1, ignore_index=IGNORED), MeanIoU(classes, threshold)
    for maps, truth in random_pictures(classes, 0, highest=classes + 1):
        expected = maps.argmax(0)
        expected[(40 * maps).softmax(0).amax(0) < threshold] = classes
        torch.testing.assert_close(ours.add(maps, truth), expected)
        metric.update(expected.flatten(), truth.flatten())
    assert ours.scores()["miou"] == pytest.approx(float(metric.compute()), abs=1e-6)


def test_class_that_is_nowhere_does_not_count():
    maps = torch.zeros(3, 2, 2)
    maps[0] = 1
    ours = MeanIoU(3)
    ours.add(maps, torch.zeros(2, 2, dtype=torch.long))
    scores = ours.scores()
    assert scores["miou"] == scores["pixel_accuracy"] == 1
    assert np.isnan(scores["class_iou"][1:]).all()


def test_present_candidates_leave_out_what_is_not_in_the_mask():
    maps = torch.tensor([0.1, 0.2, 0.9])[:, None, None].expand(3, 1, 2).clone()
    ours = MeanIoU(3, candidates="present")
    predicted = ours.add(maps, torch.tensor([[0, 1]]))
    assert predicted.tolist() == [[1, 1]]
    assert ours.scores()["miou"] == pytest.approx((0 + 1 / 2) / 2)


def test_interval_holds_the_score():
    ours = MeanIoU(4)
    for seed in range(10):
        for maps, truth in random_pictures(4, seed):
            ours.add(maps, truth)
    scores = ours.scores()
    assert scores["miou_low"] < scores["miou"] < scores["miou_high"]


@pytest.mark.parametrize("rule", [MeanIoU(3), BinaryIoU(3)], ids=["standard", "freeze-align"])
def test_nothing_to_score_is_an_error(rule):
    rule.add(torch.rand(3, 4, 4), torch.full((4, 4), IGNORED))
    with pytest.raises(ValueError, match="no pixel to score"):
        rule.scores()


@pytest.mark.parametrize("rule", [MeanIoU(3), BinaryIoU(3)], ids=["standard", "freeze-align"])
def test_picture_that_is_all_ignored_changes_nothing(rule):
    maps, truth = torch.rand(3, 4, 4), torch.randint(0, 3, (4, 4))
    rule.add(maps, truth)
    alone = rule.scores()["miou"]
    rule.add(torch.rand(3, 4, 4), torch.full((4, 4), IGNORED))
    assert rule.scores()["miou"] == alone


def by_definition(maps: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    """The rule of the paper's code, as a loop."""
    found = []
    for index in range(len(maps)):
        if not (truth == index).any():
            continue
        low, high = maps[index].min(), maps[index].max()
        claimed = (maps[index] - low) / (high - low) >= threshold if high > low else np.zeros_like(truth, dtype=bool)
        counted = truth != IGNORED
        both = (claimed & (truth == index) & counted).sum()
        either = ((claimed | (truth == index)) & counted).sum()
        found.append(both / either)
    return float(np.mean(found))


@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.9])
def test_freeze_align_rule_equals_its_definition(threshold):
    ours, expected = BinaryIoU(6, threshold), []
    for maps, truth in random_pictures(6, 1):
        ours.add(maps, truth)
        if (truth != IGNORED).any():
            expected.append(by_definition(maps.numpy(), truth.numpy(), threshold))
    assert ours.scores()["miou"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_random_map_has_a_floor_under_the_freeze_align_rule():
    # A class that fills half of the picture: a random map claims 60% of it, so IoU is .3 / .8.
    truth = torch.zeros(60, 60, dtype=torch.long)
    truth[30:] = IGNORED + 2
    ours = BinaryIoU(2)
    for seed in range(5):
        ours.add(torch.rand(2, 60, 60, generator=torch.Generator().manual_seed(seed)), truth)
    assert ours.scores()["miou"] == pytest.approx(0.3 / 0.8, abs=0.02)


def collect(rule, pictures):
    predicted = [rule.add(maps, truth) for maps, truth in pictures]
    return rule.scores(), predicted


def maps_of(labels: list[list[int]], classes: int) -> torch.Tensor:
    """Maps whose best class is the one given."""
    return torch.nn.functional.one_hot(torch.tensor(labels), classes).permute(2, 0, 1).float()


# The standard rule, case by case


def test_class_predicted_but_absent_counts_as_zero():
    scores, _ = collect(MeanIoU(3), [(maps_of([[0, 2]], 3), torch.tensor([[0, 0]]))])
    assert scores["miou"] == pytest.approx((1 / 2 + 0) / 2)


def test_areas_are_summed_before_they_are_divided():
    # Class 0: 1 of 1 pixel, then 1 of 3. Summed 2 of 4; the mean over pictures would be 2/3.
    pictures = [
        (maps_of([[0]], 2), torch.tensor([[0]])),
        (maps_of([[0, 1, 1]], 2), torch.tensor([[0, 0, 0]])),
    ]
    assert collect(MeanIoU(2), pictures)[0]["class_iou"][0] == 0.5


def test_ignored_pixels_count_neither_as_prediction_nor_as_truth():
    scores, _ = collect(MeanIoU(2), [(maps_of([[0, 1, 1, 1]], 2), torch.tensor([[0, 1, IGNORED, IGNORED]]))])
    assert (scores["miou"], scores["pixel_accuracy"]) == (1, 1)


def test_pixel_accuracy_is_the_share_of_right_pixels():
    pictures = list(random_pictures(4, 3))
    scores, predicted = collect(MeanIoU(4), pictures)
    truth = np.concatenate([mask.numpy().ravel() for _, mask in pictures])
    found = np.concatenate([some.numpy().ravel() for some in predicted])
    assert scores["pixel_accuracy"] == pytest.approx((truth == found)[truth != IGNORED].mean())


def test_picture_of_background_alone_is_background_where_only_present_classes_compete():
    rule = MeanIoU(2, background=0.1, candidates="present")
    assert rule.add(torch.rand(2, 2, 2), torch.full((2, 2), 2)).tolist() == [[2, 2], [2, 2]]
    assert rule.scores()["miou"] == 1


def test_interval_is_the_spread_of_pictures_drawn_with_replacement():
    pictures = [(maps[:, :3, :3], truth[:3, :3]) for seed in range(8) for maps, truth in random_pictures(3, seed)][::4]
    scores, predicted = collect(MeanIoU(3), pictures)
    rng, means = np.random.default_rng(1), []
    for _ in range(1500):
        both, either = np.zeros(3), np.zeros(3)
        for index in rng.integers(0, 8, 8):
            truth, found = pictures[index][1].numpy(), predicted[index].numpy()
            counted = truth != IGNORED
            for kind in range(3):
                both[kind] += ((truth == kind) & (found == kind) & counted).sum()
                either[kind] += (((truth == kind) | (found == kind)) & counted).sum()
        means.append(np.mean(both[either > 0] / either[either > 0]))
    low, high = scores["miou"] + np.quantile(means, [0.025, 0.975]) - np.mean(means)
    assert (scores["miou_low"], scores["miou_high"]) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_tiling_does_not_change_the_interval(monkeypatch):
    pictures = list(random_pictures(3, 1))
    expected = collect(MeanIoU(3), pictures)[0]
    monkeypatch.setattr(metrics, "TILE_ELEMENTS", 100)
    tiled = collect(MeanIoU(3), pictures)[0]
    for end in ("miou_low", "miou_high"):
        assert tiled[end] == pytest.approx(expected[end])


# The rule of the paper's code, case by case


def test_binary_iou_by_hand():
    # Stretched: 0, .25, .5, 1. From .4 up: the last two; the class has the last three.
    maps, truth = torch.tensor([[[2.0, 3.0, 4.0, 6.0]]]), torch.tensor([[1, 0, 0, 0]])
    scores, (predicted,) = collect(BinaryIoU(1), [(maps, truth)])
    assert scores["miou"] == pytest.approx(2 / 3)
    assert predicted.tolist() == [[IGNORED, IGNORED, 0, 0]]


def test_claiming_background_costs_binary_iou():
    maps = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])
    assert collect(BinaryIoU(1), [(maps, torch.tensor([[0, 1, 1, 1]]))])[0]["miou"] == pytest.approx(1 / 3)


def test_ignored_pixels_are_left_out_of_binary_iou():
    maps = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])
    truth = torch.tensor([[0, IGNORED, IGNORED, 1]])
    assert collect(BinaryIoU(1), [(maps, truth)])[0]["miou"] == 1


def test_stretching_makes_offset_and_scale_of_a_map_irrelevant():
    pictures = list(random_pictures(3, 5, highest=4))
    moved = [(maps * 16 - 8, truth) for maps, truth in pictures]
    assert collect(BinaryIoU(3), moved)[0]["miou"] == pytest.approx(
        collect(BinaryIoU(3), pictures)[0]["miou"], abs=0.01
    )


def test_flat_map_claims_nothing():
    scores, (predicted,) = collect(BinaryIoU(2), [(torch.ones(2, 2, 2), torch.zeros(2, 2, dtype=torch.long))])
    assert scores["miou"] == 0
    assert (predicted == IGNORED).all()


def test_best_of_the_claiming_classes_is_shown():
    maps = torch.tensor([[[0.0, 0.5, 1.0]], [[1.0, 0.6, 0.0]], [[9.0, 9.0, 0.0]]])  # the third is not in the mask
    assert BinaryIoU(3).add(maps, torch.tensor([[0, 1, 0]])).tolist() == [[1, 1, 0]]


def test_picture_without_classes_is_left_out_of_the_mean():
    pictures = list(random_pictures(3, 2, highest=4))
    nothing = [(torch.rand(3, 4, 4), torch.full((4, 4), label)) for label in (IGNORED, 3)]
    with_them, without = collect(BinaryIoU(3), [*pictures, *nothing])[0], collect(BinaryIoU(3), pictures)[0]
    assert with_them == without
