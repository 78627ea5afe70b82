"""LogitScale: the learnable temperature of the contrastive loss."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from freezealign.modules.base import Module


class LogitScale(Module):
    """Divide cosine similarities by a learnable temperature.

    Args:
        temperature: Initial value; 0.07 in the paper.
        minimum: Lower bound; 0.001 in the paper.
        maximum: Upper bound; 0.5 in the paper. The bounds are enforced on the parameter itself after every optimiser
            step (:meth:`clamp_`), so that the gradient at a bound is not lost.
    """

    config_keys: ClassVar[list[str]] = ["temperature", "minimum", "maximum"]

    def __init__(self, temperature: float = 0.07, minimum: float = 0.001, maximum: float = 0.5) -> None:
        super().__init__()
        low, initial, high = torch.tensor([minimum, temperature, maximum], dtype=torch.float32)
        if not 0 < low <= initial <= high:
            raise ValueError(f"temperature {temperature} must lie in [{minimum}, {maximum}], and above 0.")
        self.minimum, self.maximum = minimum, maximum
        self.temperature = nn.Parameter(initial.clone())

    def forward(self, similarity: Tensor) -> Tensor:  # type: ignore[override]
        """Turn similarities of any shape into logits."""
        return similarity / self.temperature

    @torch.no_grad()
    def clamp_(self) -> None:
        """Put the temperature back within its bounds."""
        self.temperature.clamp_(self.minimum, self.maximum)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the bounds and the present temperature."""
        return {"temperature": self.temperature.item(), "minimum": self.minimum, "maximum": self.maximum}
