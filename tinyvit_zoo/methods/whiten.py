"""Filters for a first convolution that whiten the patches of the training images."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ZooError

WHITENED, _EPSILON = 5000, 5e-4     # images, and what keeps rare patterns from growing: of arXiv 2404.00498


def whiten_first_conv(network: Any, images: Tensor) -> None:
    """Fix the filters to eigenvectors of the covariance of patches, each scaled to unit variance, with both signs.

    `images` are normalized, [N, C, H, W]. Filters beyond twice the values of a patch stay random.
    """
    conv = first_conv(network)
    patches = F.unfold(images, conv.kernel_size).transpose(1, 2).flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + _EPSILON).sqrt()).T.flip(0).unflatten(1, conv.weight.shape[1:])
    count = min(len(filters), len(conv.weight) // 2)
    with torch.no_grad():
        conv.weight[:2 * count] = torch.cat([filters[:count], -filters[:count]]).to(conv.weight)
    conv.weight.requires_grad_(False)


def first_conv(network: Any) -> nn.Conv2d:
    name = network.pretrained_cfg.get('first_conv') or ''
    conv = network.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(conv, nn.Conv2d) or conv.groups > 1:
        raise ZooError(f'whiten needs a model that begins with a convolution, and {type(network).__name__} does not: '
                       f'leave it out.')
    return conv
