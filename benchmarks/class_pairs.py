"""Class pairs: what an image encoder that was trained to classify already knows by name."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import layer_norm

from freezealign.encoders.timm import TimmEncoder
from freezealign.features import FeatureStore
from freezealign.features.shard import ShardBuilder

IMAGENET_CLASSES = 1000


def class_pairs(model: Any, store: FeatureStore) -> FeatureStore:
    """Return one pair a class of the image encoder's own classifier: its weights, as if a picture's, and its name.

    To be mixed with real pairs: ``model.fit([store, class_pairs(model, store)])``. Each side is layer-normed and moved
    to the mean of the real pairs, so that only what tells classes apart is learned from them. This is knowledge the
    encoder was given with its labels: say so beside any score.

    Args:
        model: A :class:`~freezealign.FreezeAlign`; its image encoder is a timm model with ImageNet's 1,000 classes.
        store: The real pairs, at level ``pooled``.

    Raises:
        ValueError: If the encoder has no such classifier, or the store is not pooled.
    """
    if store.level != "pooled":
        raise ValueError("class pairs go with pooled features: extract the pairs with level='pooled'.")
    rows, names = _classifier(model)
    captions = model.extract_features([{"text": name} for name in names], modalities=["text"], level="pooled")
    dtype = str(store.columns["image/sentence_embedding"].dtype)
    builder, one_each = ShardBuilder(dtype), [1] * len(names)  # type: ignore[arg-type]
    for modality, vectors in {"image": rows, "text": captions["text"].vectors()}.items():
        moved = _moved(vectors, store[modality].vectors())
        builder.add_features(modality, {"sentence_embedding": moved}, np.arange(len(names)))
    builder.add_items(names, dict.fromkeys(("image", "text"), one_each), {"text": names})
    return FeatureStore.from_shards(store.origins, [builder.build().columns])


def _classifier(model: Any) -> tuple[Tensor, list[str]]:
    """Return the weights of the image encoder's classifier (1000, D) and the names of its classes."""
    from timm.data import ImageNetInfo

    encoder = model.encoders["image"]
    classifier = encoder.encoder.model.get_classifier() if isinstance(encoder.encoder, TimmEncoder) else None
    weight = getattr(classifier, "weight", None)
    if weight is None or weight.shape != (IMAGENET_CLASSES, encoder.get_embedding_dimension()):
        raise ValueError(f"'{encoder.name}' has no classifier of ImageNet's {IMAGENET_CLASSES} classes.")
    info = ImageNetInfo()
    return weight.detach().cpu(), [info.index_to_description(index) for index in range(IMAGENET_CLASSES)]


def _moved(vectors: Tensor, real: Tensor) -> Tensor:
    """Return layer-normed vectors (n, D) with the mean of the layer-normed real ones."""
    vectors, real = (layer_norm(x.float(), x.shape[-1:]) for x in (vectors, real))
    return vectors - vectors.mean(0) + real.mean(0)
