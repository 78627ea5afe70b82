"""How alike two spaces are: measures of alignment, and the search for encoders that belong together."""

from freezealign.alignment.cca import CCA, SVCCA, Procrustes, cca, procrustes, svcca
from freezealign.alignment.cka import RBFCKA, LinearCKA, linear_cka, rbf_cka
from freezealign.alignment.measure import Measure
from freezealign.alignment.neighbours import CKNNA, MutualKNN, cknna, mutual_knn
from freezealign.alignment.pairing import rank_encoders
from freezealign.alignment.ranking import PairRanking, RankedPair
from freezealign.alignment.registry import METRICS
from freezealign.alignment.rsa import RSA, rsa
from freezealign.alignment.significance import AlignmentScore
from freezealign.alignment.streaming import Alignment, measure_alignment

__all__ = [
    "CCA",
    "CKNNA",
    "METRICS",
    "RBFCKA",
    "RSA",
    "SVCCA",
    "Alignment",
    "AlignmentScore",
    "LinearCKA",
    "Measure",
    "MutualKNN",
    "PairRanking",
    "Procrustes",
    "RankedPair",
    "cca",
    "cknna",
    "linear_cka",
    "measure_alignment",
    "mutual_knn",
    "procrustes",
    "rank_encoders",
    "rbf_cka",
    "rsa",
    "svcca",
]
