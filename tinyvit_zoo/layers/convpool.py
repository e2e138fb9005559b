"""Convolution, pooling and ReLU of a CCT tokenizer."""
import torch
from torch import Tensor, nn

from ..kernels import conv_pool  # noqa: F401  registers the operator
from ..kernels.conv_pool import pooled_relu


def conv_pool_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """ReLU of the pooled convolution of a map in channels-last."""
    # inference on a CPU; an exported program is to hold no operator of ours
    inference = torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not torch.is_grad_enabled()
    if inference and conv.bias is None and x.device.type == 'cpu':
        weight: Tensor = conv.weight
        if torch.is_autocast_enabled('cpu'):
            dtype = torch.get_autocast_dtype('cpu')
            x, weight = x.to(dtype), weight.to(dtype)
        return torch.ops.tinyvit_zoo.conv_pool(x, weight, int(conv.stride[0]), int(conv.padding[0]))
    return pooled_relu(conv(x))
