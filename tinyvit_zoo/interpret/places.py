"""The layers of a model that analyses look at: where each stands on the image, and what passes through it.

    layers = attention_layers(model)
    with watch_attention(layers, lambda index, logits: ...):
        model.forward_features(images)

Known are all models of the zoo, and of timm those that are a plain `VisionTransformer` (ViT, DeiT) or a `Cait`. Any
other model of timm's that has `forward_intermediates` still shows its features.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from timm.layers import Attention
from timm.models.cait import ClassAttn, TalkingHeadAttn
from torch import Tensor, nn

from ..errors import ZooError
from ..models import Layer, attention_logits, block_layers

_KNOWN = 'a model of the zoo, or a ViT, DeiT or CaiT of timm'
See = Callable[[int, Tensor], None]


# -- attention ---------------------------------------------------------------------------------------------------------
def attention_layers(model: nn.Module) -> list[Layer]:
    """The blocks, all with attention; ZooError where it cannot be read."""
    why = no_attention(model)
    if why:
        raise ZooError(f'The attention of {type(model).__name__} cannot be read: {why}. Take {_KNOWN}.')
    return block_layers(model)


def no_attention(model: nn.Module) -> str:
    """Why a model's attention cannot be read; '' where it can."""
    layers = block_layers(model)
    if not layers:
        return 'its blocks are not known'
    for layer in layers:
        attn = layer.attention
        if not hasattr(attn, 'logits') and type(attn) not in (Attention, ClassAttn, TalkingHeadAttn):
            return f'{layer.name} holds {"none of its own" if attn is None else type(attn).__name__}'
    return ''


def layer_logits(attn: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The input of the softmax [B, H, queries, keys], for the input of an attention module; in float32 or better.

    Where heads are mixed before the softmax, they are mixed. A window's tokens and those of another: -inf.
    """
    if hasattr(attn, 'logits'):
        logits = attn.logits(*args)
    elif isinstance(attn, (ClassAttn, TalkingHeadAttn)):  # timm's, which have no methods for it
        x, = args
        if isinstance(attn, ClassAttn):
            q, k = (f(y).unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for f, y in (
                (attn.q, x[:, :1]), (attn.k, x)))
        else:
            q, k, _ = attn.qkv(x).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        logits = (q * attn.scale) @ k.transpose(-2, -1)
        if isinstance(attn, TalkingHeadAttn):
            logits = attn.proj_l(logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    else:
        logits = attention_logits(attn, *args, **kwargs)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def watch_attention(layers: Sequence[Layer], see: See) -> Iterator[None]:
    """Within, a forward pass calls `see(index, logits)` for each of these layers (`layer_logits`)."""
    def hook(index: int, attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(index, layer_logits(attn, *args, **kwargs))

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.callback(layer.attention.register_forward_pre_hook(partial(hook, index), with_kwargs=True).remove)
        yield


# -- features ----------------------------------------------------------------------------------------------------------
def feature_names(model: Any) -> list[str]:
    """Names of the features that `see_features` shows, from the image on; ZooError where there are none."""
    why = no_features(model)
    if why:
        raise ZooError(f'The features of {type(model).__name__} cannot be read: {why}. Take {_KNOWN}.')
    return [layer.name for layer in _patch_layers(model)] or [info['module'] for info in model.feature_info]


def no_features(model: Any) -> str:
    """Why the layers of a model cannot be compared; '' where they can."""
    known = block_layers(model) or hasattr(model, 'forward_intermediates')
    return '' if known else 'its blocks are not known, and it has no forward_intermediates'


def see_features(model: Any, images: Tensor, see: See) -> None:
    """Run a model, and call `see(index, features)` with each block's patch tokens, or maps [B, ...] of another model.

    Blocks of a late class token are left out: they do not change the patches.
    """
    layers = _patch_layers(model)
    if not layers:
        for index, features in enumerate(model.forward_intermediates(images, intermediates_only=True)):
            see(index, features)
        return

    def hook(index: int, layer: Layer, block: nn.Module, args: Any, output: Tensor) -> None:
        see(index, output[:, layer.prefix:] if output.ndim == 3 else output)

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.callback(layer.block.register_forward_hook(partial(hook, index, layer)).remove)
        model.forward_features(images)


def _patch_layers(model: Any) -> list[Layer]:
    return [layer for layer in block_layers(model) if not layer.class_only]
