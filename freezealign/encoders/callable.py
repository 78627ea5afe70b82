"""Backend ``callable``: any function from a list of inputs to vectors or tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from freezealign.batch import Features
from freezealign.encoders.base import Encoder
from freezealign.inputs import shorten
from freezealign.modality import modality_of, read_item


class CallableEncoder(Encoder):
    """Wrap a function as a frozen encoder.

    Args:
        function: From a list of n inputs (RGB PIL images, strings, or whatever the modality holds) to vectors (n, D),
            or to a list of n token arrays (T_i, D). NumPy or torch. An ``nn.Module`` moves with the model.
        modality: Which tower it belongs to.
        dim: D; found by calling the function once where it is not stated.
        fingerprint: What identifies the function's weights; by default its tensors if it is a module, else only its
            qualified name, which cannot tell that it changed.
        parameters: How many parameters the function has, where it is no module; counted as 0 by default.
        sample: An item to call it with, where the modality has none of its own.
    """

    has_cls = False
    device_anchor: Tensor

    def __init__(
        self,
        function: Callable[[list[Any]], Any],
        modality: str,
        dim: int | None = None,
        fingerprint: str | None = None,
        parameters: int = 0,
        sample: Any = None,
    ) -> None:
        super().__init__()
        self.modality, self.function, self._fingerprint = modality, function, fingerprint
        self._parameter_count = parameters
        self.register_buffer("device_anchor", torch.empty(0), persistent=False)
        probe = modality_of(modality).probe if sample is None else read_item(sample, modality)
        if dim is None and probe is None:
            raise ValueError(f"state the width of the {modality!r} encoder, dim=…, or give FrozenEncoder a sample=….")
        if dim is not None and dim < 1:
            raise ValueError(f"dim={dim}: an encoder is at least 1 wide.")
        self.eval()
        self.dim = 0 if dim is None else dim
        if dim is None:
            with torch.no_grad():
                self.dim = int(next(iter(self.forward({"inputs": [probe]}).values())).shape[-1])

    def preprocess(self, items: list[Any]) -> Features:
        """Return the items as they are: the function does its own preprocessing."""
        return {"inputs": items}

    def forward(self, batch: Features) -> Features:
        """Call the function; see :class:`Encoder` for what comes back.

        Raises:
            ValueError: If it gives neither vectors nor tokens, none for some item, not one result an item, or
                vectors of another width than before.
        """
        results = [self._tensor(result) for result in self._results(batch["inputs"])]
        shapes = sorted({tuple(result.shape) for result in results})
        if len({len(shape) for shape in shapes}) > 1 or any(len(shape) not in (1, 2) or 0 in shape for shape in shapes):
            raise ValueError(f"a function gives vectors (D,) or at least one token (T, D) an item, got {shapes}.")
        widths = {result.shape[-1] for result in results} | ({self.dim} if self.dim else set())
        if len(widths) > 1:
            raise ValueError(f"a function gives vectors or tokens of one width, got {sorted(widths)}.")
        if results[0].ndim == 1:
            return {"sentence_embedding": torch.stack(results)}
        lengths = torch.tensor([len(result) for result in results], device=self.device_anchor.device)
        padded = nn.utils.rnn.pad_sequence(results, batch_first=True)
        mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        return {"token_embeddings": padded, "attention_mask": mask.long()}

    def _results(self, items: list[Any]) -> list[Any]:
        """Return what the function gives, one result an item."""
        results = self.function(items)
        if isinstance(results, (str, bytes, dict)) or not hasattr(results, "__iter__"):
            raise ValueError(
                f"a function from n inputs gives n vectors or n arrays of tokens, not a {type(results).__name__}."
            )
        listed = list(islice(results, len(items) + 1))  # it may have no end
        if len(listed) != len(items):
            count = len(results) if hasattr(results, "__len__") else len(listed)
            raise ValueError(f"the function gave {count} vectors or token arrays for {len(items)} inputs.")
        return listed

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Unknown: whatever the function does."""
        return {}

    def fingerprint(self) -> str:
        """Return what was given, or a digest of the module's tensors, or of the function's qualified name."""
        if self._fingerprint is not None:
            return self._fingerprint
        if isinstance(self.function, nn.Module):
            return super().fingerprint()
        kind = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        return hashlib.sha256(f"{kind.__module__}.{kind.__qualname__}".encode()).hexdigest()

    def num_parameters(self) -> int:
        """Return the number of the function's parameters: a module's own, or what was stated."""
        return super().num_parameters() or self._parameter_count

    def _tensor(self, values: Any) -> Tensor:
        try:
            if not isinstance(values, Tensor):
                array = np.asarray(values)
                values = torch.as_tensor(np.ascontiguousarray(array) if array.ndim else array)
            if values.is_complex():
                raise TypeError("complex numbers")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"a function gives vectors or arrays of tokens, not {shorten(values)} for an item: {error}."
            ) from None
        kind = values.dtype if values.is_floating_point() else torch.float32
        return values.to_dense().to(self.device_anchor.device, kind)
