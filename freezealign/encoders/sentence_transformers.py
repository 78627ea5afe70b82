"""Backend ``sentence_transformers``: a text encoder with its own pooling and maximum length."""

from __future__ import annotations

from typing import Any

import torch

from freezealign.encoders.base import Encoder, EncoderReference
from freezealign.encoders.hub import explain_hub_errors
from freezealign.encoders.packages import find_package
from freezealign.encoders.text import CutWarning, special_token_ids, vocabulary_digest
from freezealign.modules.base import Features


class SentenceTransformerEncoder(Encoder):
    """A ``SentenceTransformer`` of texts: its token embeddings, and its own pooled vector beside them.

    Args:
        model: The SentenceTransformer.
        max_length: Tokens a text instead of the model's ``max_seq_length``.
    """

    special_ids: torch.Tensor

    def __init__(self, model: Any, max_length: int | None = None) -> None:
        super().__init__()
        if not hasattr(model.tokenizer, "unk_token_id"):
            raise ValueError(
                "this SentenceTransformer has no tokens; use its vectors: FrozenEncoder(model.encode, 'text')."
            )
        self.modality, self.model = "text", model
        model.tokenizer.padding_side = "right"
        if max_length:
            model.max_seq_length = max_length
        self.max_length: int = model.max_seq_length
        self.register_buffer("special_ids", special_token_ids(model.tokenizer), persistent=False)
        self._cut = CutWarning(model.tokenizer, self.max_length)
        self.dim = self._token_width()

    def preprocess(self, items: list[Any]) -> Features:
        """Return ``input_ids`` and ``attention_mask`` (B, T), padded to the longest text of the batch."""
        batch: Features = self.model.preprocess(items)
        self._cut.check(items, batch["attention_mask"])
        return batch

    def forward(self, batch: Features) -> Features:
        """Return token embeddings, masks, and the model's own ``sentence_embedding``; see :class:`Encoder`."""
        output = self.model(dict(batch))
        return {
            "token_embeddings": output["token_embeddings"],
            "cls_token_embeddings": output["token_embeddings"][:, 0],
            "attention_mask": batch["attention_mask"],
            "special_tokens_mask": torch.isin(batch["input_ids"], self.special_ids),
            "sentence_embedding": output["sentence_embedding"],
        }

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The length limit and the vocabulary."""
        return {"max_length": self.max_length, "vocabulary": vocabulary_digest(self.model.tokenizer)}

    def _token_width(self) -> int:
        width: int = self.model[0].get_embedding_dimension()
        return width


def load(reference: EncoderReference) -> SentenceTransformerEncoder:
    """Load a SentenceTransformer from a package, a folder or the hub; code in its repository is never run."""
    from sentence_transformers import SentenceTransformer

    source = str(find_package(reference.package).folder() / "model") if reference.package else reference.source
    with explain_hub_errors(reference.source, reference.revision):
        model = SentenceTransformer(source, revision=reference.revision, device="cpu", trust_remote_code=False)
    return SentenceTransformerEncoder(model, reference.max_length)
