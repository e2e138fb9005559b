"""Attention of a model: its distance and entropy, maps over images, rollout, pooling weights and temperatures.

Distance and entropy follow arXiv 2205.14443: attention among the patches, without prefix tokens in the softmax;
entropy -sum p ln p, distance the sum of p times the pixels between query and key; averaged over queries and images.
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.layers import Attention
from timm.models.cait import ClassAttn, TalkingHeadAttn
from torch import Tensor, nn

from ..errors import ZooError
from ..layers import SequencePool
from ..models import Layer, attention_logits, block_layers

KNOWN = 'a model of the zoo, or a ViT, DeiT or CaiT of timm'
_BYTES = 128 << 20      # of attention of one layer held at a time
_MASKED = -1e30         # logits below are masked


def attention_layers(model: nn.Module) -> list[Layer]:
    """Return the blocks, all with attention that can be read."""
    if why := no_attention(model):
        raise ZooError(f'The attention of {type(model).__name__} cannot be read: {why}. Use {KNOWN}.')
    return block_layers(model)


def no_attention(model: nn.Module) -> str:
    """Return why a model's attention cannot be read; '' where it can."""
    layers = block_layers(model)
    if not layers:
        return 'its blocks are not known'
    for layer in layers:
        attn = layer.attention
        if not hasattr(attn, 'logits') and type(attn) not in (Attention, ClassAttn, TalkingHeadAttn):
            return f'{layer.name} holds {"none of its own" if attn is None else type(attn).__name__}'
    return ''


def layer_logits(attn: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Return the input of the softmax [B, H, queries, keys], heads mixed, in float32 or better; -inf across windows."""
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
def watch_attention(layers: Sequence[Layer], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call `see(index, logits)` for each of these layers in every forward pass inside."""
    def hook(index: int, attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(index, layer_logits(attn, *args, **kwargs))
    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.callback(layer.attention.register_forward_pre_hook(partial(hook, index), with_kwargs=True).remove)
        yield


def patch_attention(logits: Tensor, prefix: int, uniform: bool = False) -> Tensor:
    """Return attention among the patches [B, H, N, N], `prefix` tokens left out; `uniform`: even over those allowed."""
    return (logits.where(logits < _MASKED, 0.) if uniform else logits)[:, :, prefix:, prefix:].softmax(-1)


def distances(grid: tuple[int, int], stride: tuple[float, float], device: Any = None) -> Tensor:
    """Return the distances in pixels between all tokens of a grid [N, N]."""
    rows, cols = (torch.arange(n, device=device).float() * step for n, step in zip(grid, stride, strict=True))
    places = torch.cartesian_prod(rows, cols).view(-1, 2)
    return torch.cdist(places, places, compute_mode='donot_use_mm_for_euclid_dist')


def distance_and_entropy(attention: Tensor, apart: Tensor) -> Tensor:
    """Average the `distances` [N, N] and entropies (nats) of attention [B, H, N, N] over queries -> [2, B, H]."""
    return torch.stack([values.sum(-1).mean(-1) for values in (attention * apart, torch.special.entr(attention))])


@dataclass
class Reach:
    """Distance and entropy of each layer by head (layers differ in heads), and those of uniform attention."""
    layers: list[Layer]
    distance: list[Tensor]          # [H], pixels
    entropy: list[Tensor]           # [H], nats
    uniform_distance: list[float]
    uniform_entropy: list[float]

    def arrays(self) -> dict[str, Any]:
        """Return the numbers as arrays to save."""
        return {
            'layers': [layer.name for layer in self.layers], 'grid': [layer.grid for layer in self.layers],
            'stride': [layer.stride for layer in self.layers],
            'distance': ragged(self.distance), 'entropy': ragged(self.entropy),
            'uniform_distance': self.uniform_distance, 'uniform_entropy': self.uniform_entropy}

    def table(self, title: str) -> str:
        """Return a table with a line for each layer: mean and range over the heads, and uniform attention."""
        lines = [f'{title:20} {"grid":>7} {"distance, px":>22} {"uniform":>8} {"entropy, nats":>22} {"uniform":>8}']
        for i, layer in enumerate(self.layers):
            distance, entropy = (f'{heads.mean():.2f} ({heads.min():.2f} to {heads.max():.2f})'
                                 for heads in (self.distance[i], self.entropy[i]))
            lines.append(f'{layer.name:20} {layer.grid[0]:>3}x{layer.grid[1]:<3} {distance:>22} '
                         f'{self.uniform_distance[i]:8.2f} {entropy:>22} {self.uniform_entropy[i]:8.2f}')
        return '\n'.join(lines)


def ragged(rows: Sequence[Tensor]) -> np.ndarray:
    """Return an array [layers, heads], NaN where a layer has fewer heads than another."""
    array = np.full((len(rows), max(len(row) for row in rows)), np.nan)
    for into, row in zip(array, rows, strict=True):
        into[:len(row)] = row.numpy()
    return array


def images_at_once(model: Any, most: int = 32) -> int:
    """Return a batch size for which the attention of a layer fits in 128 MiB."""
    largest = max(layer.attention.num_heads * (layer.grid[0] * layer.grid[1] + layer.prefix) ** 2
                  for layer in attention_layers(model))
    return max(1, min(most, _BYTES // (4 * largest)))


@torch.no_grad()
def reach(model: Any, batches: Iterable[Tensor]) -> Reach:
    """Measure distance and entropy in every layer whose queries are patches."""
    layers = [layer for layer in attention_layers(model) if not layer.class_only]
    sums: list[Any] = [0.] * len(layers)

    def see(index: int, logits: Tensor) -> None:
        layer = layers[index]
        apart = distances(layer.grid, layer.stride, logits.device)
        uniform = patch_attention(logits[:1], layer.prefix, uniform=True).expand(len(logits), -1, -1, -1)
        values = [distance_and_entropy(attention, apart).cpu().double().sum(1)
                  for attention in (patch_attention(logits, layer.prefix), uniform)]
        sums[index] = sums[index] + torch.cat(values)
    count = 0
    with watch_attention(layers, see):
        for images in batches:
            model.forward_features(images)
            count += len(images)
    means = [each / count for each in sums]
    return Reach(layers, *([each[row] for each in means] for row in (0, 1)),
                 *([each[row].mean().item() for each in means] for row in (2, 3)))


def roll_out(heads: Sequence[Tensor]) -> Tensor:
    """Multiply (A + 1) / 2 over the layers (arXiv 2005.00928), A being the mean head [B, N, N] of each, in order."""
    rolled = torch.eye(heads[0].shape[-1], dtype=heads[0].dtype, device=heads[0].device)
    for attention in heads:
        rolled = (attention @ rolled + rolled) / 2
    return rolled


def no_rollout(model: Any) -> str:
    """Return why a model's attention cannot be rolled out; '' where it can."""
    layers = attention_layers(model)
    if any(layer.mixes_heads for layer in layers):
        return 'its heads are mixed after the softmax with weights of either sign'
    if not any(layer.name.startswith('blocks.') for layer in layers):
        return 'its tokens are merged between stages'
    return ''


@dataclass
class Maps:
    """Attention of one query over the image."""
    layer: Layer
    query: str              # 'the class token', 'all patches, in the mean' or 'patch ROW, COL'
    heads: Tensor           # [B, H, rows, columns]
    rollout: Tensor | None  # [B, rows, columns]


@torch.no_grad()
def attention_maps(model: Any, images: Tensor, layer: int = -1, patch: tuple[int, int] | None = None) -> Maps:
    """Return each head's attention of a layer, and the rollout to the classifier's input, where defined."""
    # patch: the query's row and column; None: the class token where the layer has one, else the mean of patches
    layers = attention_layers(model)
    if not -len(layers) <= layer < len(layers):
        raise ZooError(f'There is no layer {layer}: the model has {len(layers)} with attention, counted from 0.')
    layer %= len(layers)
    body = [] if no_rollout(model) else _body(layers)
    heads: list[Tensor] = []
    means: list[Tensor] = []

    def see(index: int, logits: Tensor) -> None:
        if index == layer:
            heads.append(logits.softmax(-1))
        if layers[index] in body:
            means.append(logits.softmax(-1).mean(1))
    with watch_attention(layers, see):
        tokens = model.forward_features(images)
    chosen = layers[layer]
    query, maps = _select_query(chosen, heads[0], patch)
    rolled = _rolled(model, tokens, means, body[-1]).cpu() if body else None
    return Maps(chosen, query, maps.unflatten(2, chosen.grid).cpu(), rolled)


def _body(layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if layer.name.startswith('blocks.')]


def _rolled(model: Any, tokens: Tensor, means: Sequence[Tensor], last: Layer) -> Tensor:
    """Return the rollout [B, rows, columns] from the patches to the classifier's input."""
    return (readout(model, tokens)[:, None] @ roll_out(means))[:, 0, last.prefix:].unflatten(1, last.grid)


def _select_query(layer: Layer, attention: Tensor, patch: tuple[int, int] | None) -> tuple[str, Tensor]:
    """Return the name of the query, and its row of the attention [B, H, queries, keys] over the patches [B, H, N]."""
    rows, cols = layer.grid
    attention = attention[..., attention.shape[3] - rows * cols:]
    if patch is not None:
        if layer.class_only or not (0 <= patch[0] < rows and 0 <= patch[1] < cols):
            queries = 'the class token alone' if layer.class_only else f'{rows} x {cols} patches, counted from 0'
            raise ZooError(f'There is no query {patch[0]},{patch[1]} in {layer.name}: its queries are {queries}.')
        return f'patch {patch[0]}, {patch[1]}', attention[:, :, layer.prefix + patch[0] * cols + patch[1]]
    if layer.prefix:
        return 'the class token', attention[:, :, 0]
    return 'the mean of all patches', attention.mean(2)


def readout(model: Any, tokens: Tensor) -> Tensor:
    """Return the classifier's weight of each token [B, N, D] -> [B, N]; other poolings count as the mean of patches."""
    if not no_pooling(model):
        return model.attn_pool.weights(tokens)[:, :, 0]
    weights = tokens.new_zeros(tokens.shape[:2])
    if model.global_pool == 'token':
        weights[:, 0] = 1
    else:
        weights[:, model.num_prefix_tokens:] = 1 / (tokens.shape[1] - model.num_prefix_tokens)
    return weights


@dataclass
class Pooling:
    """Weights of sequence pooling, which sum to 1."""
    maps: Tensor        # [B, rows, columns], of the patches
    prefix: Tensor      # [B, prefix tokens]
    stride: tuple[float, float]     # pixels from one token to the next


def no_pooling(model: Any) -> str:
    """Return why a model has no weights of sequence pooling; '' where it has."""
    if isinstance(getattr(model, 'attn_pool', None), SequencePool):
        return ''
    return f'it is read out by {getattr(model, "global_pool", "others")!r}, not by sequence pooling as cvt_* and cct_*'


@torch.no_grad()
def pooling_weights(model: Any, images: Tensor) -> Pooling:
    """Return the weights of sequence pooling over the images."""
    if why := no_pooling(model):
        raise ZooError(f'{type(model).__name__} has no pooling weights: {why}.')
    pooling = _pooling(model, model.forward_features(images))
    return Pooling(pooling.maps.float().cpu(), pooling.prefix.float().cpu(), pooling.stride)


def _pooling(model: Any, tokens: Tensor) -> Pooling:
    tokens = tokens.flatten(1, 2) if tokens.ndim == 4 else tokens  # of a staged model
    weights = model.attn_pool.weights(tokens)[:, :, 0]
    last = block_layers(model)[-1]
    prefix = weights.shape[1] - last.grid[0] * last.grid[1]
    return Pooling(weights[:, prefix:].unflatten(1, last.grid), weights[:, :prefix], last.stride)


def no_look(model: Any) -> str:
    """Return why the image regions behind a prediction cannot be shown; '' if they can."""
    return '' if not no_pooling(model) else no_attention(model) or no_rollout(model)


class Looking(nn.Module):
    """A model that returns logits and where it looks [B, rows, columns]: pooling weights, else the rollout."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.pools = not no_pooling(model)
        self.layers = block_layers(model)[-1:] if self.pools else _body(attention_layers(model))

    @property
    def kind(self) -> str:
        return 'sequence pooling' if self.pools else 'attention rollout'

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        means: list[Tensor] = []
        with watch_attention([] if self.pools else self.layers, lambda _, logits: means.append(
                logits.softmax(-1).mean(1))):
            tokens = self.model.forward_features(images)
        looks = (_pooling(self.model, tokens).maps if self.pools
                 else _rolled(self.model, tokens, means, self.layers[-1]))
        return self.model.forward_head(tokens), looks


def no_temperatures(model: Any) -> str:
    """Return why a model has no learned temperatures; '' where it has."""
    learned = any(getattr(layer.attention, 'temperature', None) is not None for layer in block_layers(model))
    return '' if learned else 'it has no locality attention (lsa=True), unlike sl_*'


@torch.no_grad()
def temperatures(model: Any) -> dict[str, Tensor]:
    """Return by layer the factor on the logits of each head [H] over that of plain attention, where it starts."""
    if why := no_temperatures(model):
        raise ZooError(f'{type(model).__name__} has no temperatures: {why}.')
    return {layer.name: layer.attention.temperature.float().cpu() / getattr(
        layer.attention, 'scale', layer.attention.head_dim ** -0.5) for layer in block_layers(model)
        if getattr(layer.attention, 'temperature', None) is not None}
