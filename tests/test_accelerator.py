"""The same behaviour on whatever accelerator the machine has: ``pytest -m gpu``."""

from __future__ import annotations

import numpy as np
import pytest

from freezealign import FreezeAlign
from freezealign.tower import default_device

pytestmark = pytest.mark.gpu


def test_embeddings_are_those_of_the_cpu(model, images, texts):
    expected = model.encode([*images, *texts])
    np.testing.assert_allclose(model.encode([*images, *texts], device=default_device()), expected, atol=1e-3)


def test_a_function_that_gives_numpy_works_beside_projectors_on_the_accelerator(callable_model, pairs, images):
    callable_model.to(default_device())
    callable_model.fit(pairs, epochs=2, show_progress_bar=False)
    assert np.isfinite(callable_model.encode(images)).all()


@pytest.mark.parametrize("options", [{}, {"cache_features": False}, {"init": "closed-form"}])
def test_fit_lowers_the_loss(model, pairs, options):
    model.to(default_device())
    losses = model.fit(pairs, epochs=20, show_progress_bar=False, **options).losses
    assert losses[-1] < losses[0]


def test_saved_on_the_accelerator_loads_on_the_cpu(model, images, tmp_path):
    model.to(default_device()).save_pretrained(tmp_path)
    loaded = FreezeAlign.from_pretrained(tmp_path, device="cpu")
    np.testing.assert_allclose(loaded.encode(images), model.encode(images), atol=1e-3)
