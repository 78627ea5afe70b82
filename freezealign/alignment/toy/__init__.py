"""The paper's toy experiment: does alignment before training tell the loss after it? And where does it not?

Two random non-linear maps see the same latent items, each result gets noise, and two small projectors are trained on
them with the contrastive loss. Source: Maniparambil et al., "Harnessing Frozen Unimodal Encoders for Flexible
Multimodal Alignment", CVPR 2025, which publishes neither n, nor d, nor the maps: those here are our choice, and every
output states them.

The study has three arms. In ``noise``, the paper's, noise and maps vary. In ``width``, the width of both spaces and of
the latent items varies, at one level of noise in every dimension. In ``stretch``, an invertible linear map stretches
both spaces, which takes no information from them and which a linear projector can undo, but to which CKA is not blind.
"""

from freezealign.alignment.toy.settings import ToySettings
from freezealign.alignment.toy.study import ToyStudy, run_toy

__all__ = ["ToySettings", "ToyStudy", "run_toy"]
