"""A FreezeAlign under clip-benchmark: its metrics and its command line run on it unchanged.

``python -m freezealign.integrations.clip_benchmark eval --model_type freezealign --model FOLDER --pretrained '' …`` is
clip-benchmark's own command line. Give ``--output``, as the default name of its result file holds the model's path, and
``--no_amp`` for the very numbers of this library's evaluators: by default it computes in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from freezealign.integrations import import_benchmark
from freezealign.modality import MODALITIES

if TYPE_CHECKING:
    from PIL import Image

    from freezealign.encoders import FrozenEncoder
    from freezealign.space.space import Space

MODEL_TYPE = "freezealign"


class Texts(list[str]):
    """Texts in the place of tokens, so that every text encoder can tokenise and sort them in its own way."""

    def to(self, device: Any) -> Texts:
        """Return the texts as they are; they reach a device as tokens."""
        return self


class ClipModel(nn.Module):
    """What clip-benchmark calls a model: images as tensors and :class:`Texts` in, embeddings out.

    Args:
        model: The model it embeds with, and puts into eval mode.
    """

    def __init__(self, model: Space) -> None:
        super().__init__()
        self.model = model
        self.eval()

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the embeddings (B, d), unit length, of what the transform made of images: (B, 3, H, W)."""
        embeddings: dict[str, Tensor] = self.model({"image": {"pixel_values": pixels}})
        return embeddings["image"].float()

    def encode_text(self, texts: Texts) -> Tensor:
        """Return the embeddings (B, d), unit length, of B texts."""
        embeddings: Tensor = self.model.encode_text(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return embeddings


class ClipBenchmarkModel(NamedTuple):
    """The three things that clip-benchmark's metrics take.

    Args:
        model: Has ``encode_image`` and ``encode_text``.
        transform: From a PIL image to the tensor (3, H, W) that ``encode_image`` takes a batch of.
        tokenizer: From a list of texts to what ``encode_text`` takes.
    """

    model: ClipModel
    transform: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[Sequence[str]], Texts]


def as_clip_benchmark(model: Space) -> ClipBenchmarkModel:
    """Return ``(model, transform, tokenizer)`` for clip-benchmark's ``evaluate`` functions.

    The transform is the image encoder's own preprocessing, and embeddings are those of ``encode``. The model is put
    into eval mode.

    Raises:
        ModuleNotFoundError: If clip-benchmark is not installed; the message gives the pip command.
        ValueError: If the model lacks an image or a text tower, or its image encoder reads no pixel tensors.
    """
    repair_accuracy()
    model.tower("text")
    return ClipBenchmarkModel(ClipModel(model), image_transform(model.tower("image").encoder), Texts)


def image_transform(encoder: FrozenEncoder) -> Callable[[Image.Image], Tensor]:
    """Return the preprocessing of an image encoder, for one image at a time.

    Raises:
        ValueError: If it does not make one tensor of an image.
    """
    given = sorted(encoder.preprocess([MODALITIES["image"].probe]))
    if given != ["pixel_values"]:
        raise ValueError(
            f"clip-benchmark makes one tensor of each image, but the encoder '{encoder.name}' takes {given}; use a "
            "model with a timm or transformers image encoder, or the evaluators of freezealign.evaluation."
        )

    def transform(image: Image.Image) -> Tensor:
        pixels: Tensor = encoder.preprocess([image])["pixel_values"]
        return pixels[0]

    return transform


def repair_accuracy() -> None:
    """Replace clip-benchmark's ``accuracy`` where it fails: up to 1.6.2 it does with NumPy 2.4 or later."""
    metric = import_benchmark("clip_benchmark.metrics.zeroshot_classification", "clip-benchmark")
    try:
        metric.accuracy(torch.eye(1), torch.tensor([0]))
    except TypeError:  # it calls float() on an array of one element, which NumPy no longer converts
        metric.accuracy = accuracy


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[float]:
    """Return for each k the share of rows of ``output`` (N, C) that have ``target`` (N,) among their k largest."""
    right = output.topk(max(topk), dim=1).indices == target[:, None]
    return [right[:, :k].sum().item() / len(target) for k in topk]


def load(model_name: str, pretrained: str, cache_dir: str | None, device: str) -> ClipBenchmarkModel:
    """Load a model as clip-benchmark's command line asks for it.

    Args:
        model_name: A folder or a hub id.
        pretrained: Empty, as a model of this library has no further checkpoints.
        cache_dir: ``None``, as models from the hub are kept where all its libraries keep them.
        device: Where the model lives.

    Raises:
        ValueError: If there is a checkpoint or a cache folder.
    """
    from freezealign import FreezeAlign

    if pretrained:
        raise ValueError(f"a freezealign model has no checkpoint {pretrained!r}; pass --pretrained ''.")
    if cache_dir:
        raise ValueError(f"models cannot be kept in {cache_dir!r}: leave out --model_cache_dir and set HF_HOME.")
    return as_clip_benchmark(FreezeAlign.from_pretrained(model_name, device=device))


def main() -> None:
    """Run clip-benchmark's command line, to which ``--model_type freezealign`` is known."""
    models = import_benchmark("clip_benchmark.models", "clip-benchmark")
    models.TYPE2FUNC[MODEL_TYPE] = load
    models.MODEL_TYPES[:] = models.TYPE2FUNC  # in place, since the command line holds this very list
    repair_accuracy()
    import_benchmark("clip_benchmark.cli", "clip-benchmark").main()


if __name__ == "__main__":
    main()
