"""Convolutions fused with their neighbours: max-pool 3x3 / 2 and ReLU of CCT, and the merging of shifted patches."""
import math
from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .operator import backward_of, operator

_CHUNK_BYTES = 4 << 20      # of the output of `conv_pool`'s convolution at a time


# -- convolution, max-pool and ReLU ------------------------------------------------------------------------------------
# Pooling drops three quarters of the convolution's output, the largest map of a CCT. Eager mode runs a large batch in
# slices (`slice_length`), but a compiled graph holds it whole. In training the operator gains nothing.
def _conv_shape(x: Any, weight: Any, stride: int, padding: int) -> list[int]:
    """Return the shape [B, D, H, W] of the convolution's output."""
    return [x[0], weight[0], *((size + 2 * padding - weight[2]) // stride + 1 for size in x[2:])]


def _pooled_relu(x: Tensor) -> Tensor:
    """Pool before the ReLU: the same values and gradients, a quarter of the work."""
    return F.relu(F.max_pool2d(x, 3, 2, 1))


def _empty_pooled(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    batch, channels, *sizes = _conv_shape(x.shape, weight.shape, stride, padding)
    shape = (batch, channels, *((size + 1) // 2 for size in sizes))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@operator('conv_pool', _empty_pooled, lambda x, weight, *args: (
    2 * math.prod(_conv_shape(x, weight, *args)) * math.prod(weight[1:])))
def conv_pool(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return relu(max_pool(conv(x))) [B, D, H, W], channels last."""
    out = _empty_pooled(x, weight, stride, padding)
    values = math.prod(_conv_shape(x.shape, weight.shape, stride, padding)[1:])  # of an image
    step = max(1, _CHUNK_BYTES // (values * x.element_size()))
    with torch.autocast('cpu', enabled=False):
        for part, target in zip(x.split(step), out.split(step), strict=True):
            target.copy_(_pooled_relu(F.conv2d(part, weight, None, stride, padding)))
    return out


def _is_plain(conv: nn.Conv2d) -> bool:
    """Return whether all that a convolution does is in its weight, stride and padding."""
    usual = type(conv) is nn.Conv2d and conv.bias is None and conv.padding_mode == 'zeros'
    return usual and conv.dilation == (1, 1) and not (conv._forward_hooks or conv._forward_pre_hooks)


def conv_pool_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply convolution, max-pool and ReLU to a map in channels-last."""
    # the operator for inference on a CPU; an exported program must not hold our operators
    inference = torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not torch.is_grad_enabled()
    if inference and x.device.type == 'cpu' and _is_plain(conv):
        weight: Tensor = conv.weight
        if torch.is_autocast_enabled('cpu'):
            dtype = torch.get_autocast_dtype('cpu')
            x, weight = x.to(dtype), weight.to(dtype)
        return torch.ops.tinyvit_zoo.conv_pool(x, weight, int(conv.stride[0]), int(conv.padding[0]))
    return _pooled_relu(conv(x))


# -- merging of shifted patches as one convolution ---------------------------------------------------------------------
# A 2x2 patch of a map and its four shifted copies has 20 C values: the copies tile the 4x4 neighbourhood of the patch,
# and the map repeats its middle. LayerNorm and Linear of them are a 4x4 convolution with stride 2, corrected by mean
# and deviation, which need two sums a token: a fifth less to multiply, and no tensor five times as large as the map.
# Mean and deviation from sums of squares lose precision where all values are nearly equal, as pixels of one colour are:
# images are not embedded in this way.
def _multiplicity(like: Tensor) -> Tensor:
    """Return how often each place of the neighbourhood is among the shifted patches' values [1, 1, 4, 4]."""
    return F.pad(like.new_ones(1, 1, 2, 2), (1, 1, 1, 1)) + 1


def _empty_merged(x: Tensor, kernel: Tensor, *_: Any) -> Tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1] // 2, x.shape[2] // 2)
    statistic = x.new_empty(*shape, 1, dtype=torch.promote_types(x.dtype, torch.float32))
    return kernel.new_empty(*shape, kernel.shape[0]), statistic, torch.empty_like(statistic)


def _flops(x: Any, kernel: Any, *_: Any) -> int:
    return 2 * x[0] * (x[1] // 2) * (x[2] // 2) * 20 * x[3] * kernel[0]


@operator('shifted_merging', _empty_merged, _flops)
def shifted_merging(x: Tensor, kernel: Tensor, offset: Tensor, eps: float) -> Tuple[Tensor, Tensor, Tensor]:
    """Map [B, H, W, C] -> [B, H // 2, W // 2, D] before the last bias, and the patches' mean and 1 / deviation.

    kernel [D, C, 4, 4]: the Linear's and the LayerNorm's weights; offset [D]: their output for a map of ones.
    """
    with torch.autocast('cpu', enabled=False):
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = torch.stack([exact.sum(-1), torch.linalg.vecdot(exact, exact)])  # [2, B, H, W]
        sums = F.conv2d(sums.flatten(0, 1)[:, None], _multiplicity(sums), stride=2, padding=1).unflatten(0, (2, -1))
        mean, square = (sums / (20 * x.shape[3])).movedim(2, -1)  # of each patch's 20 C values
        scale = (square - mean * mean).clamp(min=0).add(eps).rsqrt()
        out = F.conv2d(x.to(kernel.dtype).permute(0, 3, 1, 2), kernel, stride=2, padding=1).permute(0, 2, 3, 1)
        out = torch.addcmul(out, mean, offset, value=-1).mul_(scale)
    return out.to(kernel.dtype, memory_format=torch.contiguous_format), mean, scale


@backward_of(shifted_merging, 'shifted_merging', lambda *shapes: 2 * _flops(*shapes), gradients=3,
             saved=lambda inputs, output: (*inputs[:3], *output))
def shifted_merging_backward(grad: Tensor, x: Tensor, kernel: Tensor, offset: Tensor, out: Tensor, mean: Tensor,
                             scale: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, kernel and offset."""
    with torch.autocast('cpu', enabled=False):
        scaled = (grad * scale).to(kernel.dtype)
        grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(
            scaled.permute(0, 3, 1, 2), x.to(kernel.dtype).permute(0, 3, 1, 2), kernel, None, [2, 2], [1, 1], [1, 1],
            False, [0, 0], 1, [True, True, False])
        grad_offset = -torch.einsum('bhwd,bhw->d', scaled.to(mean.dtype), mean[..., 0])
        # the gradients of each value of a patch through the deviation and through the mean
        count = 20 * x.shape[3]
        by_square = (grad.to(mean.dtype) * out).sum(-1, keepdim=True) * scale.square() / -count
        by_mean = -(scaled @ offset.to(scaled.dtype)).to(mean.dtype)[..., None] / count - mean * by_square
        both = torch.stack([by_square, by_mean]).squeeze(-1).flatten(0, 1)[:, None]
        odd = (x.shape[1] % 2, x.shape[2] % 2)
        both = F.conv_transpose2d(both, _multiplicity(both), stride=2, padding=1, output_padding=odd)
        square, plain = both.unflatten(0, (2, -1)).squeeze(2)[..., None]
        grad_x = torch.addcmul(grad_x.permute(0, 2, 3, 1) + plain, x, square)
    return grad_x.to(x.dtype), grad_kernel, grad_offset.to(offset.dtype)
