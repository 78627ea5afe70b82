"""Intersection over union, by the standard rule and by that of the paper's code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
