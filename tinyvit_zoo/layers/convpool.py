"""Convolution, max-pool 3x3 / 2 and ReLU of a CCT tokenizer as one, some images at a time, for compiled inference.

The convolution's output is the largest map of the model by far, and pooling throws three quarters of it away. In eager
mode a large batch runs in slices on a CPU (`slice_length`); a compiled graph holds the whole batch, and its largest map
is beyond what the allocator keeps: mapped, zeroed and given back at every pass. The operator is opaque to the compiler
and goes through the batch by itself, whatever its size. (In training it gains nothing: measured, and left out.)
"""
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

_CHUNK_BYTES = 4 << 20      # of the convolution's output at a time


def _map_size(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def _pooled_relu(x: Tensor) -> Tensor:
    """Pooling before ReLU: the same values and gradients, a quarter of the work."""
    return F.relu(F.max_pool2d(x, 3, 2, 1))


def _empty_output(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    height, width = ((_map_size(size, weight.shape[2], stride, padding) + 1) // 2 for size in x.shape[2:])
    return torch.empty(
        (x.shape[0], weight.shape[0], height, width), dtype=x.dtype, device=x.device,
        memory_format=torch.channels_last)


@torch.library.custom_op('tinyvit_zoo::conv_pool', mutates_args=(), device_types='cpu')
def conv_pool(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """relu(max_pool(conv(x))) [B, D, H, W], channels last."""
    out = _empty_output(x, weight, stride, padding)
    values = math.prod(_map_size(size, weight.shape[2], stride, padding) for size in x.shape[2:]) * weight.shape[0]
    step = max(1, _CHUNK_BYTES // (values * x.element_size()))
    with torch.autocast('cpu', enabled=False):
        for part, target in zip(x.split(step), out.split(step), strict=True):
            target.copy_(_pooled_relu(F.conv2d(part, weight, None, stride, padding)))
    return out


@conv_pool.register_fake
def _conv_pool_fake(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    return _empty_output(x, weight, stride, padding)


@register_flop_formula(torch.ops.tinyvit_zoo.conv_pool)
def _conv_pool_flop(x_shape: Any, weight_shape: Any, stride: int, padding: int, **_: Any) -> int:
    sizes = [_map_size(size, weight_shape[2], stride, padding) for size in x_shape[2:]]
    return 2 * x_shape[0] * math.prod(sizes) * math.prod(weight_shape)


def conv_pool_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """ReLU of the pooled convolution of a map in channels-last."""
    if conv.bias is None and torch.compiler.is_compiling() and _may_use_operator(x):
        weight: Tensor = conv.weight
        if torch.is_autocast_enabled('cpu'):
            dtype = torch.get_autocast_dtype('cpu')
            x, weight = x.to(dtype), weight.to(dtype)
        return torch.ops.tinyvit_zoo.conv_pool(x, weight, int(conv.stride[0]), int(conv.padding[0]))
    return _pooled_relu(conv(x))


def _may_use_operator(x: Tensor) -> bool:
    """Inference on a CPU; an exported program is to hold no operator of ours."""
    return x.device.type == 'cpu' and not torch.is_grad_enabled() and not torch.compiler.is_exporting()
