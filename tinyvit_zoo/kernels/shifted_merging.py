"""Merging of shifted patches as one convolution.

A 2x2 patch of a map and its four shifted copies has 20 C values: the copies tile the 4x4 neighbourhood of the patch,
and the map repeats its middle. LayerNorm and Linear of them are a 4x4 convolution with stride 2, corrected by mean and
deviation, which need two sums a token: a fifth less to multiply, and no tensor five times as large as the map.

Mean and deviation from sums of squares lose precision where all values are nearly equal, as pixels of one colour are:
images are not embedded in this way.
"""
from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .operator import backward_of, operator


def _multiplicity(like: Tensor) -> Tensor:
    """Return how often each place of the neighbourhood is among the shifted patches' values [1, 1, 4, 4]."""
    return F.pad(like.new_ones(1, 1, 2, 2), (1, 1, 1, 1)) + 1


def _empty(x: Tensor, kernel: Tensor, *_: Any) -> Tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1] // 2, x.shape[2] // 2)
    statistic = x.new_empty(*shape, 1, dtype=torch.promote_types(x.dtype, torch.float32))
    return kernel.new_empty(*shape, kernel.shape[0]), statistic, torch.empty_like(statistic)


def _flops(x: Any, kernel: Any, *_: Any) -> int:
    return 2 * x[0] * (x[1] // 2) * (x[2] // 2) * 20 * x[3] * kernel[0]


@operator('shifted_merging', _empty, _flops)
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
def shifted_merging_backward(
        grad: Tensor, x: Tensor, kernel: Tensor, offset: Tensor, out: Tensor, mean: Tensor, scale: Tensor,
) -> Tuple[Tensor, Tensor, Tensor]:
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
