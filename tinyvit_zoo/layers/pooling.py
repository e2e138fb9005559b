"""Read-outs that are more than a mean."""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class SequencePool(nn.Module):
    """Weighted mean of the tokens, the weights a softmax over the tokens of one learned score each [B, N, D] -> [B, D].

    It takes the place of the class token in CVT and CCT (arXiv 2104.05704, section 3.4).
    """

    def __init__(self, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return (self.weights(x).transpose(1, 2) @ x).squeeze(1)

    def weights(self, x: Tensor) -> Tensor:
        """[B, N, 1]; those of an image sum to one."""
        return self.score(x).softmax(dim=1)
