"""Convolution, max-pool 3x3 / 2 and ReLU as one, some images at a time, for compiled inference.

Pooling drops three quarters of the convolution's output, the largest map of a CCT. Eager mode runs a large batch in
slices (`slice_length`), but a compiled graph holds it whole. In training the operator gains nothing.
"""
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .operator import operator

_CHUNK_BYTES = 4 << 20      # of the convolution's output at a time


def _conv_shape(x: Any, weight: Any, stride: int, padding: int) -> list[int]:
    """Return the shape [B, D, H, W] of the convolution's output."""
    return [x[0], weight[0], *((size + 2 * padding - weight[2]) // stride + 1 for size in x[2:])]


def _pooled_relu(x: Tensor) -> Tensor:
    """Pool before the ReLU: the same values and gradients, a quarter of the work."""
    return F.relu(F.max_pool2d(x, 3, 2, 1))


def _empty(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    batch, channels, *sizes = _conv_shape(x.shape, weight.shape, stride, padding)
    shape = (batch, channels, *((size + 1) // 2 for size in sizes))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@operator('conv_pool', _empty, lambda x, weight, *args: (
    2 * math.prod(_conv_shape(x, weight, *args)) * math.prod(weight[1:])))
def conv_pool(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return relu(max_pool(conv(x))) [B, D, H, W], channels last."""
    out = _empty(x, weight, stride, padding)
    values = math.prod(_conv_shape(x.shape, weight.shape, stride, padding)[1:])  # of an image
    step = max(1, _CHUNK_BYTES // (values * x.element_size()))
    with torch.autocast('cpu', enabled=False):
        for part, target in zip(x.split(step), out.split(step), strict=True):
            target.copy_(_pooled_relu(F.conv2d(part, weight, None, stride, padding)))
    return out


def conv_pool_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply convolution, max-pool and ReLU to a map in channels-last."""
    # the operator for inference on a CPU; an exported program must not hold our operators
    inference = torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not torch.is_grad_enabled()
    if inference and conv.bias is None and x.device.type == 'cpu':
        weight: Tensor = conv.weight
        if torch.is_autocast_enabled('cpu'):
            dtype = torch.get_autocast_dtype('cpu')
            x, weight = x.to(dtype), weight.to(dtype)
        return torch.ops.tinyvit_zoo.conv_pool(x, weight, int(conv.stride[0]), int(conv.padding[0]))
    return _pooled_relu(conv(x))
