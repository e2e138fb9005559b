"""The layers of a model that analyses look at: where each stands on the image, and what passes through it.

    layers = attention_layers(model)
    with watch_attention(layers, lambda index, logits: ...):
        model.forward_features(images)

Known are all models of the zoo, and of timm those that are a plain `VisionTransformer` (ViT, DeiT) or a `Cait`. Any
other model of timm's that has `forward_intermediates` still shows its features.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import Attention, to_2tuple
from timm.models import VisionTransformer
from timm.models.cait import Cait, ClassAttn, TalkingHeadAttn
from torch import Tensor, nn

from ..errors import ZooError
from ..layers import LocalityAttention, SelfAttention, WindowAttention
from ..models import LocalPiT, LocalSwin, LocalT2T, attention_logits
from ..models._tokens import LateClassToken, TokenTransformer
from ..models.sl_cait import MixedAttention
from ..models.ssl_small import TalkingHeads

_PLAIN = (SelfAttention, LocalityAttention)
_MIXED = (MixedAttention, TalkingHeads, TalkingHeadAttn)  # their heads are mixed once more behind the softmax
_KNOWN = 'a model of the zoo, or a ViT, DeiT or CaiT of timm'
See = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Layer:
    """A block of a model and the place of its tokens on the image."""
    name: str                       # as `model.get_submodule` takes it
    block: nn.Module
    grid: tuple[int, int]           # rows and columns of its patch tokens
    stride: tuple[float, float]     # pixels from one to the next, down and right
    prefix: int                     # tokens in front of the patches
    class_only: bool = False        # its only query is the class token

    @property
    def attention(self) -> Any:
        return getattr(self.block, 'attn', None) or getattr(self.block, 'self_attn', None)

    @property
    def mixes_heads(self) -> bool:
        return isinstance(self.attention, _MIXED)


def block_layers(model: Any) -> list[Layer]:
    """The blocks from the image on; empty for a model whose blocks are not known."""
    if isinstance(model, TokenTransformer):
        return _zoo_layers(model)
    if isinstance(model, (VisionTransformer, Cait)) and hasattr(model.patch_embed, 'feat_ratio'):
        ratio, late = model.patch_embed.feat_ratio(as_scalar=False), isinstance(model, Cait)
        prefix = 0 if late else model.num_prefix_tokens
        layers = _layers('blocks', model.blocks, model.patch_embed.grid_size, ratio, prefix)
        more = _layers(
            'blocks_token_only', model.blocks_token_only, layers[0].grid, ratio, 1, class_only=True) if late else []
        return layers + more
    return []


def _zoo_layers(model: Any) -> list[Layer]:
    grid, pixels = model.grid_size, model.tokenizer.reduction
    if isinstance(model, LocalPiT):
        return [layer for i, (stage, grid) in enumerate(zip(model.stages, model._grids(model.img_size), strict=True))
                for layer in _layers(f'stages.{i}.blocks', stage.blocks, grid, to_2tuple(pixels * 2 ** i), 1)]
    if isinstance(model, LocalSwin):  # a merging leaves out an odd row or column
        return [layer for i, stage in enumerate(model.layers) for layer in _layers(
            f'layers.{i}.blocks', stage.blocks, (grid[0] >> i, grid[1] >> i), to_2tuple(pixels << i), 0)]
    layers: list[Layer] = []
    if isinstance(model, LocalT2T):
        height, width = model.img_size
        for i, step in enumerate(model.tokenizer.steps):
            half = 2 << i
            layers += _layers('tokenizer.steps', [step], (-(-height // half), -(-width // half)), to_2tuple(half), 0, i)
    layers += _layers('blocks', model.blocks, grid, to_2tuple(pixels), model.num_early_tokens)
    if isinstance(model, LateClassToken):
        layers += _layers('class_blocks', model.class_blocks, grid, to_2tuple(pixels), 1, class_only=True)
    return layers


def _layers(
        name: str, blocks: Iterable[nn.Module], grid: tuple[int, int], stride: tuple[float, float], prefix: int,
        first: int = 0, class_only: bool = False,
) -> list[Layer]:
    return [Layer(f'{name}.{i}', block, (grid[0], grid[1]), (stride[0], stride[1]), prefix, class_only)
            for i, block in enumerate(blocks, first)]


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
        kind = layer.attention
        if not isinstance(kind, (*_PLAIN, *_MIXED, WindowAttention, ClassAttn)) and type(kind) is not Attention:
            return f'{layer.name} holds {"none of its own" if kind is None else type(kind).__name__}'
    return ''


def layer_logits(attn: Any, *args: Any, **kwargs: Any) -> Tensor:
    """What the softmax is taken of [B, H, queries, keys], for what enters an attention module; in float32 or better.

    Where heads are mixed before the softmax, they are mixed. A window's tokens and those of another: -inf.
    """
    if isinstance(attn, (MixedAttention, TalkingHeads, WindowAttention)):
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
    """What `see_features` shows of a model, from the image on; ZooError where that is nothing."""
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
