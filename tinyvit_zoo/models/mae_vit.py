"""The ViT that masked autoencoding pre-trains on a small data set: MAE-ViT.

Paper: Pre-training of Lightweight Vision Transformers on Small Datasets with Minimally Scaled Images,
https://arxiv.org/abs/2402.03752 (Tan, 2024). No code and no weights were published.

A ViT of fewer than 3.65M parameters, pre-trained on CIFAR itself, with images scaled from 32 to 36 pixels, 144 patches
of 3 x 3 and a class token (the paper's "dummy token"). `mae_vit_c10` and `mae_vit_c100` are one network, meant for one
data set each: pre-training on the images of the other is worse.

It is timm's `VisionTransformer`. An image takes 0.514G multiply-adds in the linear layers and the convolution, 0.517G
with the LayerNorms (five operations a value), 0.611G with the products inside the attentions. The paper's "below 0.27G"
comes from a counter that skips attention modules: 0.257G for the patches and the MLPs.
"""
from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.models import VisionTransformer
from torch import Tensor

from ..weights import unwrap
from ._build import register_family
from ._tokens import fit_positions
from .mae_lite import build_vision, encoder_tensors

# From the paper (the width is the only multiple of 4 that gives its parameter count)
_PUBLISHED = dict(patch_size=3, embed_dim=192, depth=12, mlp_ratio=2., act_layer='relu')
# Not in the paper: our choices and their reasons
CHOSEN = dict(
    num_heads=12,         # 16 channels each, as the other ViTs of this width do: MAE-Lite's (better than 3), SPT/LSA's
    qkv_bias=False,       # "no bias in some layers": a key's changes nothing, a value's is one with the projection's
    global_pool='token',  # the class token, after the final LayerNorm
    weight_init='',       # truncated normal of .02 as for ViTs; MAE's Xavier is set by the pre-training
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: VisionTransformer,
                         source_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Fit our tensors, bare or wrapped, to the image size of `model`; use the encoder of a masked autoencoder."""
    return fit_positions(encoder_tensors(unwrap(state_dict))[0], model, source_size)


_ARGS = {**_PUBLISHED, **CHOSEN}

register_family(
    __name__, partial(build_vision, model_cls=VisionTransformer, filter_fn=checkpoint_filter_fn, own_args=_ARGS),
    {'mae_vit_c10': ('c10', 36, _ARGS), 'mae_vit_c100': ('c100', 36, _ARGS)},
    first_conv='patch_embed.proj', paper_ids='arXiv:2402.03752',
    paper_name='Pre-training of Lightweight Vision Transformers on Small Datasets with Minimally Scaled Images')
