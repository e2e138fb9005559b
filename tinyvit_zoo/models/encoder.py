"""Run plain models as encoders on some of their patches, and record tensors of the pass.

    tokens = encode(model, images, keep)      # keep [B, K]: which patches, each image its own
    with record(model, outputs=[7], logits=[-1]) as seen:
        tokens = encode(model, images, keep)  # or model(images)
    loss = distance(seen.logits[-1], teacher_logits)

Patches keep their positions and relative biases; a class token is kept. Recorded tensors carry gradients. Attention
stays fused: requested logits are computed again from the input of the attention module.

A plain model has one sequence of tokens of one width, from patches that do not overlap. (A shifted patch of `sl_vit`
includes half a patch of its neighbours, so that masked pixels leak a little.)
"""
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.layers import Attention, Format, PatchEmbed, maybe_add_mask, resolve_self_attn_mask
from timm.models import VisionTransformer, checkpoint
from torch import Tensor, nn

from ..errors import ZooError
from ..layers import SelfAttention
from ._tokens import TokenTransformer
from .fast_cnn import FastCNN
from .mae_lite import RelativeBlock, RelativeViT

_PLAIN = 'mae_vit_*, mae_lite_*, ssl_vit*, vit_lite*, cvt_*, sl_vit* or plain_vit*'


def encode(model: Any, images: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return the tokens after the final norm [B, prefix + K, D], class token first; `keep`: the patches [B, K]."""
    require_plain(model)
    if isinstance(model, VisionTransformer):
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    else:
        x = model._embed(images)
    rows = None
    if keep is not None:
        rows = _rows(model, keep, len(images))
        x = x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))
    for block in model.blocks:
        step = partial(block, rows=rows) if isinstance(block, RelativeBlock) else block  # type: ignore[misc]
        x = checkpoint(step, x) if model.grad_checkpointing else step(x)
    return model.norm(x) if isinstance(model, VisionTransformer) else model._finish(x)


def require_plain(model: nn.Module) -> None:
    """Raise ZooError unless the forward pass is tokens, blocks, norm, as `encode` runs it."""
    for base in (VisionTransformer, TokenTransformer):
        if isinstance(model, base) and type(model).forward_features is base.forward_features:
            return
    raise ZooError(f'{type(model).__name__} is not a plain encoder (one sequence of tokens, one stack): use {_PLAIN}.')


def _rows(model: Any, keep: Tensor, batch: int) -> Tensor:
    """Return the rows of the sequence to keep [B, prefix + K]: the prefix, then the patches."""
    if isinstance(model, TokenTransformer):
        if not getattr(model.tokenizer, 'cuts_patches', False) or model.num_early_tokens != model.num_prefix_tokens:
            raise ZooError(f'{type(model).__name__} has overlapping patches and cannot be masked: use {_PLAIN}.')
    if keep.ndim != 2 or len(keep) != batch or keep.dtype != torch.int64:
        raise ZooError(f'keep is {list(keep.shape)} of {keep.dtype}, expected [{batch}, K] of torch.int64.')
    prefix = model.num_prefix_tokens
    patches = torch.where(keep < 0, -1, keep + prefix)  # a negative one is not to become a prefix token, but an error
    return torch.cat([torch.arange(prefix, device=keep.device).expand(batch, -1), patches], dim=1)


@dataclass
class Recording:
    """Inputs and outputs [B, N, D] and attention logits [B, H, N, N], by the requested indices of blocks."""
    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    logits: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def record(model: nn.Module, inputs: Sequence[int] = (), outputs: Sequence[int] = (),
           logits: Sequence[int] = ()) -> Iterator[Recording]:
    """Record tensors of the blocks with these indices (negative: from the end); a second pass overwrites the first."""
    require_plain(model)
    if model.grad_checkpointing:
        raise ZooError('Recording needs blocks that are computed once: call set_grad_checkpointing(False).')
    seen = Recording()

    def keep_input(index: int, block: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.inputs[index] = args[0]

    def keep_output(index: int, block: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.outputs[index] = output

    def keep_logits(index: int, attn: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        seen.logits[index] = attention_logits(attn, args[0], **kwargs)
    with ExitStack() as hooks:
        for index in inputs:
            hooks.callback(_block(model, index).register_forward_pre_hook(partial(keep_input, index)).remove)
        for index in outputs:
            hooks.callback(_block(model, index).register_forward_hook(partial(keep_output, index)).remove)
        for index in logits:
            block = _block(model, index)
            attn: Any = getattr(block, 'attn', None) or getattr(block, 'self_attn', None)
            if not isinstance(attn, SelfAttention) and type(attn) is not Attention:
                raise ZooError(f'The logits of {type(attn).__name__} cannot be recorded, only those of plain '
                               f'attention.')
            hooks.callback(attn.register_forward_pre_hook(partial(keep_logits, index), with_kwargs=True).remove)
        yield seen


def _block(model: Any, index: int) -> nn.Module:
    if not -len(model.blocks) <= index < len(model.blocks):
        raise ZooError(f'There is no block {index}: the model has {len(model.blocks)}, counted from 0.')
    return model.blocks[index]


def attention_logits(attn: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Return the input of the softmax [B, H, N, N] for tokens [B, N, D]: scaled, with relative biases and masks."""
    if isinstance(attn, SelfAttention):
        return attn.logits(x)
    qkv = attn.qkv(x).unflatten(2, (3, attn.num_heads, attn.head_dim))  # timm's, which has no methods for it
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    logits = (attn.q_norm(q) * attn.scale) @ attn.k_norm(k).transpose(-2, -1)
    return maybe_add_mask(logits, resolve_self_attn_mask(x.shape[1], logits, attn_mask, is_causal))


def image_size(model: Any) -> tuple[int, int]:
    """Return the height and width of the model's input."""
    return model.img_size if hasattr(model, 'img_size') else model.patch_embed.img_size


def take_any_size(model: Any) -> None:
    """Make the model interpolate its positions to images of any size; weights and results at its own size stay."""
    if isinstance(model, RelativeViT):
        raise ZooError('RelativeViT has relative positions for one image size: use mae_lite_vit_tiny.')
    if isinstance(model, VisionTransformer) and isinstance(model.patch_embed, PatchEmbed):
        # as the constructor does for `dynamic_img_size=True`
        model.patch_embed.strict_img_size = model.patch_embed.flatten = False
        model.patch_embed.output_fmt = Format.NHWC
    elif not isinstance(model, (TokenTransformer, FastCNN)):
        raise ZooError(f'{type(model).__name__} does not take images of any size: use one of `tinyvit-zoo list`.')
    model.dynamic_img_size = True
