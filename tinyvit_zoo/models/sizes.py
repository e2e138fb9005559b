"""Models of one image size as models of any: what a pre-training on views of several sizes needs."""
from typing import Any

from timm.layers import Format, PatchEmbed
from timm.models import VisionTransformer

from ..errors import ZooError
from ._tokens import TokenTransformer
from .mae_lite import RelativeViT

__all__ = ['image_size', 'take_any_size']


def image_size(model: Any) -> tuple[int, int]:
    """Height and width of the images that the model was made for."""
    return model.img_size if hasattr(model, 'img_size') else model.patch_embed.img_size


def take_any_size(model: Any) -> None:
    """From here on the model takes images of any size: positions are interpolated (a sine table is made anew).

    At the model's own size nothing changes, and no tensor does. timm's VisionTransformer takes what its patches divide.
    """
    if isinstance(model, RelativeViT):
        raise ZooError('RelativeViT takes images of one size, its relative positions are those of one grid: take '
                       'mae_lite_vit_tiny, whose weights it can start from.')
    if isinstance(model, VisionTransformer) and isinstance(model.patch_embed, PatchEmbed):
        # what `dynamic_img_size=True` makes of a new model
        model.patch_embed.strict_img_size = model.patch_embed.flatten = False
        model.patch_embed.output_fmt = Format.NHWC
    elif not isinstance(model, TokenTransformer):
        raise ZooError(f'{type(model).__name__} is not known to take images of any size: take a model of the zoo '
                       f'(`tinyvit-zoo list`).')
    model.dynamic_img_size = True
