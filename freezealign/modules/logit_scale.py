"""LogitScale: the learnable temperature of the losses, and the bias that one of them needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from freezealign.modules.base import Module, check_options

ROUNDING = 1e-6


class LogitScale(Module):
    """Divide cosine similarities by a learnable temperature, and add a learnable bias if there is one.

    Args:
        temperature: Initial value; 0.07 in the paper.
        minimum: Lower bound; 0.001 in the paper.
        maximum: Upper bound; 0.5 in the paper. The bounds are enforced on the parameter itself after every optimiser
            step (:meth:`clamp_`), so that the gradient at a bound is not lost.
        bias: Initial value of what is added to every logit, for the sigmoid loss; None for no bias, and no parameter.
    """

    config_keys: ClassVar[list[str]] = ["temperature", "minimum", "maximum", "bias"]
    bias: nn.Parameter | None

    def __init__(
        self, temperature: float = 0.07, minimum: float = 0.001, maximum: float = 0.5, bias: float | None = None
    ) -> None:
        super().__init__()
        check_options(temperature=temperature, minimum=minimum, maximum=maximum)
        low, initial, high = torch.tensor([minimum, temperature, maximum], dtype=torch.float32, device="cpu")
        if not 0 < low <= initial <= high < torch.inf:
            raise ValueError(f"temperature {temperature} must lie in [{minimum}, {maximum}], and above 0.")
        self.minimum, self.maximum = minimum, maximum
        self.temperature = nn.Parameter(torch.empty(()).fill_(initial.item()))
        self.register_parameter("bias", None)
        if bias is not None:
            self.add_bias_(bias)

    def forward(self, similarity: Tensor) -> Tensor:  # type: ignore[override]
        """Turn similarities of any shape into logits."""
        logits = similarity / self.temperature
        return logits if self.bias is None else logits + self.bias

    def add_bias_(self, value: float = -10.0) -> None:
        """Add a bias if there is none; -10 is the start of Zhai et al. 2023. Do so before making an optimiser."""
        check_options(bias=value)
        if self.bias is None:
            self.bias = nn.Parameter(torch.full_like(self.temperature, value, requires_grad=False))

    @torch.no_grad()
    def clamp_(self) -> None:
        """Put the temperature back within its bounds."""
        self.temperature.clamp_(self.minimum, self.maximum)

    @classmethod
    def from_folder(cls, folder: Path) -> LogitScale:
        """Load what :meth:`save` wrote.

        Raises:
            ValueError: If the folder is incomplete, or the temperature is not within its bounds.
        """
        scale = super().from_folder(folder)
        assert isinstance(scale, LogitScale)
        scale.check(scale.temperature, folder)
        return scale

    def check(self, temperature: Tensor, path: Path) -> None:
        """Raise a ``ValueError`` if a temperature that was saved at ``path`` is not within the bounds."""
        value = temperature.item()
        if not self.minimum * (1 - ROUNDING) <= value <= self.maximum * (1 + ROUNDING):
            raise ValueError(f"{path}: the temperature is {value}, and not within [{self.minimum}, {self.maximum}].")

    def get_config_dict(self) -> dict[str, Any]:
        """Return the bounds, the present temperature and the present bias."""
        bias = None if self.bias is None else self.bias.item()
        bounds = {"minimum": self.minimum, "maximum": self.maximum}
        return {"temperature": self.temperature.item(), **bounds, "bias": bias}
