"""What attention does: how far it reaches, how spread it is, and where on an image it goes.

Distance and entropy are those of the second paper's analyses (arXiv 2205.14443): attention among the patches alone,
prefix tokens left out before the softmax; entropy -sum p ln p, distance the sum of p times the distance in pixels
between query and key; both averaged over queries and images, one number a head.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ZooError
from ..layers import SequencePool
from ..models import LocalPiT, LocalSwin
from .places import Layer, attention_layers, block_layers, watch_attention

_BYTES = 128 << 20      # of a layer's attention held at a time
_MASKED = -1e30         # logits below are masked


# -- one layer's numbers -----------------------------------------------------------------------------------------------
def patch_attention(logits: Tensor, prefix: int) -> Tensor:
    """Attention among the patches alone [B, H, N, N]: the first `prefix` tokens are left out before the softmax."""
    return logits[:, :, prefix:, prefix:].softmax(-1)


def uniform_attention(logits: Tensor, prefix: int) -> Tensor:
    """The same where every query treats all keys alike that it may attend to."""
    return patch_attention(logits.where(logits < _MASKED, 0.), prefix)


def distances(grid: tuple[int, int], stride: tuple[float, float], device: Any = None) -> Tensor:
    """In pixels, between each two tokens of a grid [N, N]."""
    rows, cols = (torch.arange(n, device=device, dtype=torch.float32) * step
                  for n, step in zip(grid, stride, strict=True))
    places = torch.cartesian_prod(rows, cols).view(-1, 2)
    return torch.cdist(places, places, compute_mode='donot_use_mm_for_euclid_dist')


def mean_distance(attention: Tensor, apart: Tensor) -> Tensor:
    """Of attention [B, H, N, N] with `distances` [N, N]: over queries, by image and head [B, H]."""
    return (attention * apart).sum(-1).mean(-1)


def mean_entropy(attention: Tensor) -> Tensor:
    """In nats, of attention [B, H, N, N]: over queries, by image and head [B, H]."""
    return torch.special.entr(attention).sum(-1).mean(-1)


# -- a model's ---------------------------------------------------------------------------------------------------------
@dataclass
class Reach:
    """For each layer by head (layers differ in heads), and for attention that treats all its keys alike."""
    layers: list[Layer]
    distance: list[Tensor]          # [H], pixels
    entropy: list[Tensor]           # [H], nats
    uniform_distance: list[float]
    uniform_entropy: list[float]


def images_at_once(model: Any, most: int = 32) -> int:
    """How many images a pass may have, for the attention of a layer to stay within reason."""
    largest = max(layer.attention.num_heads * (layer.grid[0] * layer.grid[1] + layer.prefix) ** 2
                  for layer in attention_layers(model))
    return max(1, min(most, _BYTES // (4 * largest)))


@torch.no_grad()
def reach(model: Any, batches: Iterable[Tensor]) -> Reach:
    """Distance and entropy of the attention of every layer whose queries are patches."""
    layers = [layer for layer in attention_layers(model) if not layer.class_only]
    sums: list[Any] = [0.] * len(layers)

    def see(index: int, logits: Tensor) -> None:
        layer = layers[index]
        apart = distances(layer.grid, layer.stride, logits.device)
        uniform = uniform_attention(logits[:1], layer.prefix).expand(len(logits), -1, -1, -1)
        found = [torch.stack([mean_distance(attention, apart), mean_entropy(attention)]).cpu().double().sum(1)
                 for attention in (patch_attention(logits, layer.prefix), uniform)]
        sums[index] = sums[index] + torch.cat(found)

    count = 0
    with watch_attention(layers, see):
        for images in batches:
            model.forward_features(images)
            count += len(images)
    means = [each / count for each in sums]
    return Reach(layers, *([each[row] for each in means] for row in (0, 1)),
                 *([each[row].mean().item() for each in means] for row in (2, 3)))


# -- maps over an image ------------------------------------------------------------------------------------------------
def roll_out(heads: Sequence[Tensor]) -> Tensor:
    """Attention through all layers [B, N, N] (arXiv 2005.00928): the product of (A + 1) / 2, A a layer's mean head.

    `heads`: attention of each layer [B, N, N], the first layer's first.
    """
    rolled = torch.eye(heads[0].shape[-1], dtype=heads[0].dtype, device=heads[0].device)
    for attention in heads:
        rolled = (attention @ rolled + rolled) / 2
    return rolled


def no_rollout(model: Any) -> str:
    """Why a model's attention cannot be rolled out; '' where it can."""
    if any(layer.mixes_heads for layer in attention_layers(model)):
        return 'its heads are mixed behind the softmax, by numbers of either sign, so that attention is no share'
    if isinstance(model, (LocalPiT, LocalSwin)):
        return 'its tokens are merged between the stages'
    return ''


@dataclass
class Maps:
    """Shares of attention over the image."""
    layer: Layer
    query: str              # whose attention: 'the class token', 'all patches, in the mean', 'patch ROW, COL'
    heads: Tensor           # [B, H, rows, columns]
    rollout: Tensor | None  # [B, rows, columns]; of what the model reads out, through all layers


@torch.no_grad()
def attention_maps(model: Any, images: Tensor, layer: int = -1, patch: tuple[int, int] | None = None) -> Maps:
    """Where the heads of a layer look, and the rollout to what the classifier reads, where there is one.

    Args:
        layer: index among `attention_layers`.
        patch: the query's row and column; None: the class token where the layer has one, else the mean of the patches.
    """
    layers = attention_layers(model)
    if not -len(layers) <= layer < len(layers):
        raise ZooError(f'There is no layer {layer}: the model has {len(layers)} with attention, counted from 0.')
    layer %= len(layers)
    body = [] if no_rollout(model) else [i for i, other in enumerate(layers) if other.name.startswith('blocks.')]
    heads: list[Tensor] = []
    means: dict[int, Tensor] = {}

    def see(index: int, logits: Tensor) -> None:
        if index == layer:
            heads.append(logits.softmax(-1))
        if index in body:
            means[index] = logits.softmax(-1).mean(1)

    with watch_attention(layers, see):
        tokens = model.forward_features(images)
    chosen = layers[layer]
    query, found = _of_query(chosen, heads[0], patch)
    rolled = None
    if body:
        last = layers[body[-1]]
        shares = (readout(model, tokens)[:, None] @ roll_out([means[i] for i in body]))[:, 0, last.prefix:]
        rolled = shares.unflatten(1, last.grid).cpu()
    return Maps(chosen, query, found.unflatten(2, chosen.grid).cpu(), rolled)


def _of_query(layer: Layer, attention: Tensor, patch: tuple[int, int] | None) -> tuple[str, Tensor]:
    """Whose row of [B, H, queries, keys] is taken, and what it gives to the patches [B, H, N]."""
    rows, cols = layer.grid
    attention = attention[..., attention.shape[3] - rows * cols:]
    if patch is not None:
        if layer.class_only or not (0 <= patch[0] < rows and 0 <= patch[1] < cols):
            what = 'the class token alone' if layer.class_only else f'{rows} x {cols} patches, counted from 0'
            raise ZooError(f'There is no query {patch[0]},{patch[1]} in {layer.name}: its queries are {what}.')
        return f'patch {patch[0]}, {patch[1]}', attention[:, :, layer.prefix + patch[0] * cols + patch[1]]
    if layer.prefix:
        return 'the class token', attention[:, :, 0]
    return 'all patches, in the mean', attention.mean(2)


def readout(model: Any, tokens: Tensor) -> Tensor:
    """How much of each token [B, N, D] the classifier sees [B, N]: the class token, sequence pooling, or the mean.

    The mean of the patches also stands for read-outs that have no shares (maxima, attention pooling of timm's).
    """
    if isinstance(getattr(model, 'attn_pool', None), SequencePool):
        return model.attn_pool.weights(tokens)[:, :, 0]
    weights = tokens.new_zeros(tokens.shape[:2])
    if model.global_pool == 'token':
        weights[:, 0] = 1
    else:
        weights[:, model.num_prefix_tokens:] = 1 / (tokens.shape[1] - model.num_prefix_tokens)
    return weights


# -- sequence pooling --------------------------------------------------------------------------------------------------
@dataclass
class Pooling:
    maps: Tensor        # [B, rows, columns]
    prefix: Tensor      # [B, prefix tokens]: what goes to tokens that are no patches
    stride: tuple[float, float]     # pixels from one token to the next


def no_pooling(model: Any) -> str:
    """Why a model has no weights of sequence pooling; '' where it has."""
    if isinstance(getattr(model, 'attn_pool', None), SequencePool):
        return ''
    return f'it is read out by {getattr(model, "global_pool", "others")!r}, not by sequence pooling as cvt_* and cct_*'


@torch.no_grad()
def pooling_weights(model: Any, images: Tensor) -> Pooling:
    """The weights of sequence pooling over the image; they sum to one."""
    why = no_pooling(model)
    if why:
        raise ZooError(f'{type(model).__name__} has no pooling weights: {why}.')
    tokens = model.forward_features(images)
    tokens = tokens.flatten(1, 2) if tokens.ndim == 4 else tokens  # a map
    weights = model.attn_pool.weights(tokens)[:, :, 0].float().cpu()
    last = block_layers(model)[-1]
    prefix = weights.shape[1] - last.grid[0] * last.grid[1]
    return Pooling(weights[:, prefix:].unflatten(1, last.grid), weights[:, :prefix], last.stride)
