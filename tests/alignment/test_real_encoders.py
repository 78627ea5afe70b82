"""What the measures are for: on real pictures with real captions, what has learned something is above what has not."""

from __future__ import annotations

import os

import numpy as np
import pytest
import timm
import torch

from freezealign import FreezeAlign, FrozenEncoder, rank_encoders
from freezealign.encoders.timm import TimmEncoder
from freezealign.samples import SampleSet, hash_fold

pytestmark = pytest.mark.slow


def openmoji() -> SampleSet:
    from freezealign.samples import load_openmoji

    return load_openmoji()


def tuxpaint() -> SampleSet:
    from freezealign.samples import load_tuxpaint

    if "FREEZEALIGN_STAMPS" not in os.environ:
        pytest.skip("set FREEZEALIGN_STAMPS to the folder that 'make stamps' fetches")
    return load_tuxpaint(os.environ["FREEZEALIGN_STAMPS"])


def random_weights(number: int) -> FrozenEncoder:
    torch.manual_seed(0)
    return FrozenEncoder(TimmEncoder(timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False)))


@pytest.mark.parametrize(("samples", "keep"), [(openmoji, 5), (tuxpaint, 1)])
def test_a_trained_vision_encoder_is_above_its_random_weights_in_every_fold(samples, keep):
    data = [
        {"id": sample.key, "image": sample.image, "text": sample.captions["en"]}
        for sample in samples().samples
        if hash_fold(f"some of them {sample.key}", keep) == 0  # one of every ``keep`` or so
    ]
    text = FreezeAlign(["all-minilm-l6-v2"], dim=8).extract_features(data, modalities=["text"], level="pooled")
    vision = {
        name: FreezeAlign([encoder], dim=8).extract_features(data, modalities=["image"], level="pooled", batch_size=8)
        for name, encoder in {"trained": FrozenEncoder("efficientnet-lite0"), "random": random_weights(0)}.items()
    }
    folds = np.array([hash_fold(name) for name in text.ids])
    for fold in range(5):
        ranking = rank_encoders(
            vision,
            {"minilm": text.select(np.flatnonzero(folds != fold))},
            metrics=("cka", "mutual_knn"),
            permutations=100,
            resamples=1,
            show_progress_bar=False,
        )
        for metric in ranking.metrics:
            scores = {pair.vision: pair.scores[metric] for pair in ranking.pairs}
            assert scores["trained"].value > scores["random"].value
            assert scores["trained"].p_value == 1 / 101
