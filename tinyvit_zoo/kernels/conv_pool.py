"""Convolution, max-pool 3x3 / 2 and ReLU as one, some images at a time, for compiled inference.

The convolution's output is the largest map of a CCT by far, and pooling throws three quarters of it away. In eager mode
a large batch runs in slices on a CPU (`slice_length`); a compiled graph holds the whole batch, and its largest map is
beyond what the allocator keeps: mapped, zeroed and given back at every pass. The operator is opaque to the compiler and
goes through the batch by itself, whatever its size. (In training it gains nothing: measured, and left out.)
"""
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .operator import operator

_CHUNK_BYTES = 4 << 20      # of the convolution's output at a time


def _conv_sizes(sizes: Any, kernel: int, stride: int, padding: int) -> list[int]:
    return [(size + 2 * padding - kernel) // stride + 1 for size in sizes]


def pooled_relu(x: Tensor) -> Tensor:
    """Pool before the ReLU: the same values and gradients, a quarter of the work."""
    return F.relu(F.max_pool2d(x, 3, 2, 1))


def _empty(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    height, width = ((size + 1) // 2 for size in _conv_sizes(x.shape[2:], weight.shape[2], stride, padding))
    return torch.empty(
        (x.shape[0], weight.shape[0], height, width), dtype=x.dtype, device=x.device,
        memory_format=torch.channels_last)


def _flops(x: Any, weight: Any, stride: int, padding: int) -> int:
    return 2 * x[0] * math.prod(_conv_sizes(x[2:], weight[2], stride, padding)) * math.prod(weight)


@operator('conv_pool', _empty, _flops)
def conv_pool(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """relu(max_pool(conv(x))) [B, D, H, W], channels last."""
    out = _empty(x, weight, stride, padding)
    values = math.prod(_conv_sizes(x.shape[2:], weight.shape[2], stride, padding)) * weight.shape[0]
    step = max(1, _CHUNK_BYTES // (values * x.element_size()))
    with torch.autocast('cpu', enabled=False):
        for part, target in zip(x.split(step), out.split(step), strict=True):
            target.copy_(pooled_relu(F.conv2d(part, weight, None, stride, padding)))
    return out
