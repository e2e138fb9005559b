"""The ViT that masked autoencoding pre-trains on a small data set: MAE-ViT.

Paper: Pre-training of Lightweight Vision Transformers on Small Datasets with Minimally Scaled Images,
https://arxiv.org/abs/2402.03752 (Tan, 2024). No code and no weights were published.

A masked autoencoder can be pre-trained on CIFAR itself, by a ViT of fewer than 3.65M parameters, if the images are
scaled a little, from 32 to 36 pixels, and the patches are small, 3 x 3: 144 patches, and one token for the class (the
paper's "dummy token"). `mae_vit_c10` and `mae_vit_c100` are one network, meant for one data set each, for pre-training
on the images of the other is worse.

It is timm's `VisionTransformer`. An image takes 0.514G multiply-adds in the linear layers and the convolution, 0.517G
with the LayerNorms (five operations a value), 0.611G with the products inside the attentions. The paper's "below 0.27G"
is what a counter gives that does not know the attention modules, 0.257G for the patches and the MLPs.
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

# What the paper says, or what follows from it (the width is the only multiple of 4 that gives its parameter count)
_PUBLISHED = dict(patch_size=3, embed_dim=192, depth=12, mlp_ratio=2., act_layer='relu')
# What it leaves open, and why we chose so
CHOSEN = dict(
    num_heads=12,         # 16 channels each, as the other ViTs of this width do: MAE-Lite's (better than 3), SPT/LSA's
    qkv_bias=False,       # "no bias in some layers": a key's changes nothing, a value's is one with the projection's
    global_pool='token',  # the token is there for the class, so it is what is read, normalised by the final LayerNorm
    weight_init='',       # truncated normal of .02 as ViTs have it; MAE's Xavier is the pre-training's own affair
)


def checkpoint_filter_fn(
        state_dict: Mapping[str, Any], model: VisionTransformer, source_size: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """Tensors of ours, bare or wrapped, as `model` sizes them; of a masked autoencoder the encoder's alone."""
    return fit_positions(encoder_tensors(unwrap(state_dict))[0], model, source_size)


_ARGS = {**_PUBLISHED, **CHOSEN}

register_family(
    __name__, partial(build_vision, model_cls=VisionTransformer, filter_fn=checkpoint_filter_fn, own_args=_ARGS),
    {'mae_vit_c10': ('c10', 36, _ARGS), 'mae_vit_c100': ('c100', 36, _ARGS)},
    first_conv='patch_embed.proj', paper_ids='arXiv:2402.03752',
    paper_name='Pre-training of Lightweight Vision Transformers on Small Datasets with Minimally Scaled Images')
