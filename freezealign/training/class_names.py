"""Class names: what an image encoder that was trained to classify already knows by name."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn.functional import layer_norm

from freezealign.features import FeatureStore
from freezealign.features.job import extract_features
from freezealign.features.shard import ShardBuilder
from freezealign.space import Space


def class_pairs(space: Space, store: FeatureStore) -> FeatureStore:
    """Return one pair a class of the image encoder's own classifier: its weights, as if a picture's, and its name.

    Each side is layer-normed and moved to the mean of the real pairs, so that only what tells classes apart is learned
    from them. This is knowledge the encoder was given with its labels.

    Args:
        space: Its image encoder is a timm model with ImageNet's 1,000 classes.
        store: The real pairs of images and texts, at level ``pooled``.

    Raises:
        ValueError: If the encoder has no such classifier, or the store is not pooled.
    """
    if store.level != "pooled":
        raise ValueError("class names go with pooled features: choose a recipe that pools first, or level='pooled'.")
    encoder = space.encoders["image"]
    if (classifier := encoder.encoder.classifier()) is None:
        raise ValueError(f"'{encoder.name}' has no classifier whose classes have known names: leave out class_names.")
    rows, names = classifier
    extraction = space.extraction("pooled", ["text"], dtype="float32", batch_size=32)
    captions = extract_features(
        [{"text": name} for name in names], extraction, space.device, None, True, "local", False
    )
    dtype = str(store.columns["image/sentence_embedding"].dtype)
    builder, one_each = ShardBuilder(dtype), [1] * len(names)  # type: ignore[arg-type]
    for modality, vectors in {"image": rows, "text": captions["text"].vectors()}.items():
        moved = _moved(vectors, store[modality].vectors())
        builder.add_features(modality, {"sentence_embedding": moved}, np.arange(len(names)))
    builder.add_items(names, dict.fromkeys(("image", "text"), one_each), {"text": names})
    return FeatureStore.from_shards(store.origins, [builder.build().columns])


def _moved(vectors: Tensor, real: Tensor) -> Tensor:
    """Return layer-normed vectors (n, D) with the mean of the layer-normed real ones."""
    vectors, real = (layer_norm(x.float(), x.shape[-1:]) for x in (vectors, real))
    return vectors - vectors.mean(0) + real.mean(0)
