"""Losses over all processes of a training. With one process, nothing changes."""
from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gathered(x: Tensor) -> Tensor:
    """The rows [B, ...] of all processes in the order of their ranks, [processes * B, ...]. Carries no gradient."""
    if count() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(count())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def in_full(x: Tensor) -> Tensor:
    """Convert half precision to single; higher precision stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Sum(torch.autograd.Function):
    """Every process's loss depends on the sum, so that its gradient is a sum too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def mean(x: Tensor) -> Tensor:
    """Over the processes; gradients flow to all of them."""
    return _Sum.apply(x) / count() if count() > 1 else x


class BatchNorm(nn.Module):
    """Normalises features [B, D] by the batch, that of all processes together, in training and evaluation alike.

    torch's SyncBatchNorm does this on GPUs only.
    """

    def __init__(self, dim: int, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if count() == 1:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        own = in_full(x)
        average = mean(own.mean(0))
        centred = own - average
        own = centred * (mean(centred.square().mean(0)) + self.eps).rsqrt()
        if self.weight is not None and self.bias is not None:
            own = torch.addcmul(self.bias, own, self.weight)
        return own.to(x.dtype)
