"""Helpers of the methods that compare whole images: features, momentum teachers, losses over all processes."""
import copy
import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ZooError
from ..models import take_any_size


def feature_width(encoder: Any) -> int:
    """Return the length of the pooled features; ZooError for a model with a classifier or unpooled features."""
    if encoder.num_classes:
        raise ZooError(f'The encoder has a classifier of {encoder.num_classes} classes: create it with num_classes=0.')
    if not encoder.global_pool:
        raise ZooError("The encoder's features are not pooled (global_pool=''): use e.g. global_pool='avg'.")
    return int(encoder.head_hidden_size)


def require_size(encoder: Any, size: tuple[int, int]) -> None:
    """Let the encoder take images of this size beside its own; ZooError with the reason where it cannot."""
    weight, training = next(encoder.parameters()), encoder.training
    try:
        take_any_size(encoder)
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, encoder.in_chans, *size, device=weight.device, dtype=weight.dtype))
    except (ZooError, AssertionError, RuntimeError) as e:
        raise ZooError(f'{type(encoder).__name__} does not take local views of {size[0]} x {size[1]} pixels: '
                       f'{str(e).splitlines()[0]} Use larger images, no local views, or moco_v3.'
                       ) from e
    encoder.train(training)


def average_(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an averaged copy of a model towards it. Buffers are copied."""
    with torch.no_grad():
        ours: list[Tensor] = list(average.parameters())
        torch._foreach_lerp_(ours, [p.detach() for p in model.parameters()], 1 - decay)
        for buffer, source in zip(average.buffers(), model.buffers(), strict=True):
            buffer.copy_(source)


def teacher_of(student: Any) -> Any:
    """Copy the student, without gradients, dropout and drop path."""
    return copy.deepcopy(student).requires_grad_(False).eval()


def momentum_at(progress: float, start: float) -> float:
    """Return a teacher's momentum: half a cosine from `start` to 1, as the training goes from 0 to 1."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * progress))


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gathered(x: Tensor) -> Tensor:
    """Gather rows [B, ...] of all processes, by rank, [processes * B, ...], without gradients."""
    if count() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(count())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def in_full(x: Tensor) -> Tensor:
    """Convert half precision to single; higher precision stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Sum(torch.autograd.Function):
    """Sum over the processes; the gradient is summed too, as every loss depends on the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def mean(x: Tensor) -> Tensor:
    """Average over the processes; gradients flow to all of them."""
    return _Sum.apply(x) / count() if count() > 1 else x


class BatchNorm(nn.Module):
    """Normalize features [B, D] by the batch of all processes, always; torch's SyncBatchNorm needs a GPU."""

    def __init__(self, dim: int, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if count() == 1:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        own = in_full(x)
        centred = own - mean(own.mean(0))
        own = centred * (mean(centred.square().mean(0)) + self.eps).rsqrt()
        if self.weight is not None and self.bias is not None:
            own = torch.addcmul(self.bias, own, self.weight)
        return own.to(x.dtype)
