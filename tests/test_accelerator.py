"""The same behaviour on whatever accelerator the machine has: ``pytest -m gpu``."""

from __future__ import annotations

import numpy as np
import pytest

from freezealign import FreezeAlign
from freezealign.batch import default_device

pytestmark = pytest.mark.gpu


def test_embeddings_are_those_of_the_cpu(model, images, texts):
    expected = model.encode([*images, *texts])
    np.testing.assert_allclose(model.encode([*images, *texts], device=default_device()), expected, atol=1e-3)


def test_a_function_that_gives_numpy_works_beside_projectors_on_the_accelerator(callable_model, pairs, images):
    callable_model.to(default_device())
    callable_model.fit(pairs, epochs=2, show_progress_bar=False)
    assert np.isfinite(callable_model.encode(images)).all()


OPTIONS = [
    {},
    {"cache_features": False},
    {"init": "closed-form"},
    {"precision": "bf16"},
    {"precision": "fp16"},
    {"loss": "sigmoid"},
    {"structure_weight": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_fit_lowers_the_loss(model, pairs, options):
    model.to(default_device())
    losses = model.fit(pairs, schedule="paper", epochs=20, show_progress_bar=False, **options).losses
    assert losses[-1] < losses[0]


def test_store_on_disk_trains_as_its_pairs(model, pairs, tmp_path):
    model.to(default_device())
    store = model.extract_features(pairs, tmp_path / "store", dtype="float32", show_progress_bar=False)
    losses = model.fit(store, schedule="paper", epochs=2, batch_size=4, show_progress_bar=False).losses
    assert len(losses) == 6 and np.isfinite(losses).all()


def test_interrupted_run_goes_on_exactly(dinov2_folder, bert_folder, pairs, tmp_path):
    def run(folder, stop_at=None):
        model = FreezeAlign([dinov2_folder, bert_folder], recipe="token", dim=16, seed=0)

        def evaluator(model, output_path, epoch, steps):
            if steps == stop_at:
                raise KeyboardInterrupt
            return 0.0

        options = {"schedule": "paper", "epochs": 4, "batch_size": 4, "show_progress_bar": False}
        return model.fit(pairs, evaluator, output_dir=folder, **options).losses

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=9)
    assert run(tmp_path / "cut") == run(tmp_path / "whole")


def test_saved_on_the_accelerator_loads_on_the_cpu(model, images, tmp_path):
    model.to(default_device()).save_pretrained(tmp_path)
    loaded = FreezeAlign.from_pretrained(tmp_path, device="cpu")
    np.testing.assert_allclose(loaded.encode(images), model.encode(images), atol=1e-3)
