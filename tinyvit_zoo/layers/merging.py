"""Shifted patches as a merging of tokens, on a CPU as one convolution.

Patches of 2x2 from a map and its four shifted copies hold five values a channel for each of four places. But the copies
tile the 4x4 neighbourhood of a patch, and the map itself only repeats the middle of it. What the LayerNorm and the
Linear make of the 20 C values is hence a convolution of the 16 C, 4x4 with stride 2, and a correction by mean and
deviation, which need two sums a token. That is a fifth less to multiply, and nothing five times as large as the map has
to be written, normalised and kept.

Mean and deviation from sums of squares lose precision where all values are nearly equal. Features of a token are not;
pixels are, where an image is of one colour, so images are not embedded in this way.
"""
from typing import Any, Tuple

import torch
import torch.nn.functional as F
from timm.models import register_notrace_function
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .shifted import ShiftedPatchTokenization, cut_patches, shift_diagonally


def _how_often(like: Tensor) -> Tensor:
    """[1, 1, 4, 4]: how often a place of the neighbourhood is among the shifted patches' values."""
    return F.pad(torch.ones(1, 1, 2, 2, dtype=like.dtype, device=like.device), (1, 1, 1, 1)) + 1


def _statistics(x: Tensor, eps: float) -> Tuple[Tensor, Tensor]:
    """Mean and 1 / deviation of each patch's 20 C values, [B, H', W', 1]."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    sums = torch.stack([exact.sum(-1), torch.linalg.vecdot(exact, exact)])  # [2, B, H, W]
    sums = F.conv2d(sums.flatten(0, 1)[:, None], _how_often(sums), stride=2, padding=1).unflatten(0, (2, -1))
    mean, square = (sums / (20 * x.shape[3])).movedim(2, -1)
    return mean, (square - mean * mean).clamp(min=0).add(eps).rsqrt()


@torch.library.custom_op('tinyvit_zoo::shifted_merging', mutates_args=(), device_types='cpu')
def shifted_merging(x: Tensor, kernel: Tensor, offset: Tensor, eps: float) -> Tuple[Tensor, Tensor, Tensor]:
    """Map [B, H, W, C] -> [B, H // 2, W // 2, D] before the last bias, and the patches' mean and 1 / deviation.

    kernel [D, C, 4, 4]: the Linear's and the LayerNorm's weights; offset [D]: what they make of a map of ones.
    """
    with torch.autocast('cpu', enabled=False):
        mean, scale = _statistics(x, eps)
        out = F.conv2d(x.to(kernel.dtype).permute(0, 3, 1, 2), kernel, stride=2, padding=1).permute(0, 2, 3, 1)
        out = torch.addcmul(out, mean, offset, value=-1).mul_(scale)
    return out.to(kernel.dtype, memory_format=torch.contiguous_format), mean, scale


@torch.library.custom_op('tinyvit_zoo::shifted_merging_backward', mutates_args=(), device_types='cpu')
def shifted_merging_backward(
        grad: Tensor, x: Tensor, kernel: Tensor, offset: Tensor, out: Tensor, mean: Tensor, scale: Tensor,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, kernel and offset."""
    with torch.autocast('cpu', enabled=False):
        scaled = (grad * scale).to(kernel.dtype)
        grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(
            scaled.permute(0, 3, 1, 2), x.to(kernel.dtype).permute(0, 3, 1, 2), kernel, None, [2, 2], [1, 1], [1, 1],
            False, [0, 0], 1, [True, True, False])
        grad_offset = -torch.einsum('bhwd,bhw->d', scaled.to(mean.dtype), mean[..., 0])
        # by way of the deviation, then of the mean: what each value of a patch gets beside the convolution's
        count = 20 * x.shape[3]
        by_square = (grad.to(mean.dtype) * out).sum(-1, keepdim=True) * scale.square() / -count
        by_mean = -(scaled @ offset.to(scaled.dtype)).to(mean.dtype)[..., None] / count - mean * by_square
        both = torch.stack([by_square, by_mean]).squeeze(-1).flatten(0, 1)[:, None]
        odd = (x.shape[1] % 2, x.shape[2] % 2)
        both = F.conv_transpose2d(both, _how_often(both), stride=2, padding=1, output_padding=odd)
        square, plain = both.unflatten(0, (2, -1)).squeeze(2)[..., None]
        grad_x = torch.addcmul(grad_x.permute(0, 2, 3, 1) + plain, x, square)
    return grad_x.to(x.dtype), grad_kernel, grad_offset.to(offset.dtype)


@shifted_merging.register_fake
def _shifted_merging_fake(x: Tensor, kernel: Tensor, offset: Tensor, eps: float) -> Tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1] // 2, x.shape[2] // 2)
    statistic = x.new_empty(*shape, 1, dtype=torch.promote_types(x.dtype, torch.float32))
    return kernel.new_empty(*shape, kernel.shape[0]), statistic, torch.empty_like(statistic)


@shifted_merging_backward.register_fake
def _shifted_merging_backward_fake(
        grad: Tensor, x: Tensor, kernel: Tensor, offset: Tensor, out: Tensor, mean: Tensor, scale: Tensor,
) -> Tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(kernel), torch.empty_like(offset)


# what is counted is what the definition multiplies, whichever way it is run
@register_flop_formula(torch.ops.tinyvit_zoo.shifted_merging)
def _shifted_merging_flops(x: Any, kernel: Any, *_: Any, **__: Any) -> int:
    return 2 * x[0] * (x[1] // 2) * (x[2] // 2) * 20 * x[3] * kernel[0]


@register_flop_formula(torch.ops.tinyvit_zoo.shifted_merging_backward)
def _shifted_merging_backward_flops(grad: Any, x: Any, kernel: Any, *_: Any, **__: Any) -> int:
    return 2 * _shifted_merging_flops(x, kernel)


def _save_for_backward(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> Tuple[Any, ...]:
    return (*torch.ops.tinyvit_zoo.shifted_merging_backward(grad, *ctx.saved_tensors), None)


shifted_merging.register_autograd(_backward, setup_context=_save_for_backward)


def _kernel(weight: Tensor) -> Tensor:
    """Weights of a patch's shifted values [D, 20 C] as a convolution's [D, C, 4, 4]."""
    middle, *copies = weight.unflatten(1, (2, 2, 5, -1)).unbind(3)  # each [D, row, column, C]
    upper, lower = torch.cat(copies[:2], 2), torch.cat(copies[2:], 2)
    return (torch.cat([upper, lower], 1) + F.pad(middle, (0, 0, 1, 1, 1, 1))).permute(0, 3, 1, 2)


@torch.fx.wrap
@register_notrace_function
def merge_shifted(
        x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, proj_weight: Tensor, proj_bias: Tensor,
) -> Tensor:
    """[B, H, W, C] -> [B, H // 2, W // 2, D]: shifted patches of 2x2, LayerNorm, Linear, by the fastest way."""
    if not torch.jit.is_scripting():
        if x.device.type == 'cpu' and type(x) is Tensor and not torch.compiler.is_compiling():
            weight = proj_weight * norm_weight
            kernel = _kernel(weight)
            if torch.is_autocast_enabled('cpu'):
                kernel = kernel.to(torch.get_autocast_dtype('cpu'))
            out = shifted_merging(x, kernel, weight.sum(1), eps)[0]
            return out + ((proj_weight * norm_bias).sum(1) + proj_bias).to(out.dtype)
    B, height, width, _ = x.shape
    x = cut_patches(shift_diagonally(x.permute(0, 3, 1, 2), 1), 2)
    x = F.linear(F.layer_norm(x, [x.shape[2]], norm_weight, norm_bias, eps), proj_weight, proj_bias)
    return x.reshape(B, height // 2, width // 2, x.shape[2])


class ShiftedMerging(ShiftedPatchTokenization):
    """Shifted patches of 2x2 as a merging, [B, H, W, C] -> [B, H // 2, W // 2, 2C]."""

    def __init__(self, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__(dim, 2 * dim, 2, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return merge_shifted(
            x, self.norm.weight, self.norm.bias, self.norm.eps, self.proj.weight, self.proj.bias)
