"""A FreezeAlign as a model of mteb, whose image benchmark is MIEB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from freezealign.batch import to_device
from freezealign.integrations import import_benchmark

if TYPE_CHECKING:
    from freezealign.space.space import Space

MODALITIES = ("text", "image")


class MtebModel:
    """What mteb calls an encoder: batches of texts, images or both in, embeddings out.

    Args:
        model: The model it embeds with.
        meta: What mteb keeps of it with each score.
    """

    def __init__(self, model: Space, meta: Any) -> None:
        self.model, self.mteb_model_meta = model, meta

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int = 32,
        show_progress_bar: bool = True,
    ) -> Tensor:
        """Embed what a task gives. An item of a text and an image is the sum of both unit vectors, made one again.

        This model has no prompts, so it makes no difference what task it is and whether items are queries.

        Args:
            inputs: mteb's DataLoader of batches, each with a list under ``text``, ``image`` (PIL images in any mode),
                or both; other keys, such as ``id``, are left alone.
            task_metadata: Not used.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Not used.
            batch_size: Items a forward pass, however many are in a batch of ``inputs``.
            show_progress_bar: Show progress if it takes longer than a second.

        Returns:
            (n, d) on the CPU, float32, unit length.

        Raises:
            ValueError: If a batch holds nothing that the model has a tower for.
        """
        from tqdm.auto import tqdm

        bar = tqdm(self._items(inputs), desc="Encoding", unit="item", disable=not show_progress_bar, delay=1)
        items, vectors = iter(bar), []
        while chunk := list(islice(items, batch_size)):
            vectors.append(self._embed(chunk).cpu())
        return torch.cat(vectors)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine similarity of every row of (n, d) with every row of (m, d): (n, m)."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine similarity of row i of (n, d) with row i of (n, d): (n,)."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)

    def _items(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield items as ``{modality: value}``; batches differ in size, as some tasks give one image at a time."""
        towers = self.mteb_model_meta.modalities
        for batch in batches:
            kinds = [kind for kind in towers if kind in batch]
            if not kinds:
                raise ValueError(f"the task gives {sorted(batch)}, but the model reads only {towers}.")
            for values in zip(*(batch[kind] for kind in kinds)):
                yield dict(zip(kinds, values))

    def _embed(self, items: list[dict[str, Any]]) -> Tensor:
        """Embed items that all have the same modalities, in one forward pass each."""
        parts = [self._embed_one([item[kind] for item in items], kind) for kind in items[0]]
        return normalize(torch.stack(parts).sum(0), dim=-1)

    def _embed_one(self, values: list[Any], kind: str) -> Tensor:
        empty = [isinstance(value, str) and not value.strip() for value in values]
        read = [value for value, nothing in zip(values, empty) if not nothing]
        vectors = self.model.encode(
            read, modality=kind, batch_size=max(1, len(read)), convert_to_tensor=True, show_progress_bar=False
        )
        if not any(empty):
            return vectors
        rows = torch.empty(len(values), vectors.shape[1], device=vectors.device)
        rows[~torch.tensor(empty)], rows[torch.tensor(empty)] = vectors, self._nothing(kind)
        return rows

    @torch.no_grad()
    def _nothing(self, kind: str) -> Tensor:
        """Return the vector of an empty text, made of the special tokens alone: a task needs all its rows."""
        batch = self.model.encoders[kind].collate([""])
        vectors: Tensor = self.model.project(kind, to_device(batch, self.model.device))["sentence_embedding"]
        return vectors.float()


def as_mteb(model: Space, name: str | None = None, revision: str | None = None) -> MtebModel:
    """Return what ``mteb.evaluate`` takes.

    Args:
        model: A model with a text tower, an image tower, or both.
        name: ``organisation/name`` under which mteb files the scores; by default ``freezealign/`` and the names of the
            encoders, without their folders and organisations.
        revision: Which version of the model it is. By default a hash of its weights, so that mteb's cache
            never gives the scores of one model for another.

    Raises:
        ModuleNotFoundError: If mteb is not installed; the message gives the pip command.
        ValueError: If ``name`` has no organisation, or the model reads neither texts nor images.
    """
    modalities = [name for name in MODALITIES if name in model.towers]
    if not modalities:
        raise ValueError(f"mteb's tasks are of {list(MODALITIES)}, but the model has only {model.modalities}.")
    model_meta = import_benchmark("mteb.models", "mteb").ModelMeta
    facts = {
        "name": name or "freezealign/" + "+".join(Path(encoder.name).name for encoder in model.encoders.values()),
        "revision": revision or model.weights_digest(),
        "modalities": modalities,
        "embed_dim": model.get_embedding_dimension(),
        "similarity_fn_name": model.similarity_fn_name,
        "framework": ["PyTorch"],
    }
    return MtebModel(model, model_meta.model_validate({**model_meta.create_empty().model_dump(), **facts}))
