"""The measures by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from freezealign.alignment.cca import CCA, SVCCA, Procrustes
from freezealign.alignment.cka import RBFCKA, LinearCKA
from freezealign.alignment.measure import Measure
from freezealign.alignment.neighbours import CKNNA, MutualKNN
from freezealign.alignment.rsa import RSA

METRICS: dict[str, Callable[[], Measure]] = {
    "cka": LinearCKA,
    "cka_biased": partial(LinearCKA, unbiased=False),
    "rbf_cka": RBFCKA,
    "mutual_knn": MutualKNN,
    "cknna": CKNNA,
    "cca": CCA,
    "svcca": SVCCA,
    "procrustes": Procrustes,
    "rsa": RSA,
}


def find_measure(metric: str | Measure) -> Measure:
    """Return the measure of that name, with its defaults; a measure is returned as it is.

    Raises:
        ValueError: If there is none of that name.
    """
    if isinstance(metric, Measure):
        return metric
    if metric not in METRICS:
        raise ValueError(f"no measure is called {metric!r}; there are {', '.join(METRICS)}.")
    return METRICS[metric]()
