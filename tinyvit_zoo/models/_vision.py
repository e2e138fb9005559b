"""Models that are timm's VisionTransformer: building them, and publishing them so that timm alone can load them."""
from collections.abc import Mapping
from typing import Any

from timm.layers import to_2tuple
from timm.models import VisionTransformer
from torch import nn

from ..errors import ZooError
from ._build import Filter, ModelT, build_model, update_model_args

_POOLS = ('', 'avg', 'avgmax', 'max', 'token', 'map')


def build_vision(
        model_cls: type[ModelT], variant: str, pretrained: bool, filter_fn: Filter, args: Mapping[str, Any],
        **kwargs: Any,
) -> ModelT:
    """A model of the architecture `args`; timm is told of them, so that its exports say them."""
    merged = {**args, **kwargs}
    size, patch, pool = to_2tuple(merged.get('img_size') or 224), merged['patch_size'], merged.get('global_pool')
    if min(size) < patch:
        raise ZooError(f'A {size[0]} x {size[1]} image gives no token: this model takes {patch} x {patch} pixels and '
                       f'more.')
    if pool is not None and pool not in _POOLS:
        raise ZooError(f'global_pool is {pool!r}, expected {" or ".join(map(repr, _POOLS))}.')
    model = build_model(
        model_cls, variant, pretrained, filter_fn, feature_cfg=dict(out_indices=3, feature_cls='getter'), **merged)
    update_model_args(model, **{name: merged[name] for name in args})
    return model


def timm_export(model: nn.Module) -> dict[str, Any]:
    """Arguments for `timm.models.save_for_hf` and `push_to_hf_hub` that make timm load the model without this package.

        timm.models.save_for_hf(model, folder, **timm_export(model))

    The export goes by the name of a ViT of timm's, and says all in which ours differs from it.
    """
    if type(model) is not VisionTransformer:
        raise ZooError(f"{type(model).__name__} is no class of timm's, which cannot load it alone: export it under its "
                       f'own name, without timm_export.')
    architecture = 'vit_small_patch16_224' if model.embed_dim == 384 else 'vit_tiny_patch16_224'
    return dict(model_config=dict(pretrained_cfg=dict(architecture=architecture)), safe_serialization=True)
