"""Parity fixtures: how their tensors are made, and the definitions of some families written out plainly.

A fixture (tests/fixtures/*/*.json) holds the tensor names and shapes of an authors' checkpoint, and the logits that the
authors' implementation gives in float64. Values are drawn from the name: see `fill`.
"""
import itertools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FIXTURES = Path(__file__).parent / 'fixtures'


def load_fixtures(folder: str) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted((FIXTURES / folder).glob('*.json'))]
    assert found, f'no fixtures in {folder}'
    return found


def fill(name: str, shape: list[int]) -> Tensor:
    """The value of an authors' tensor, from its name: unit-variance products, LayerNorm weights around 1."""
    value = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) >= 2:
        value = value * (0.5 if shape[0] == 1 else math.prod(shape[1:]) ** -0.5)
    else:
        value = 0.1 * value + (1.0 if name.endswith(('weight', 'scale')) or 'gamma' in name else 0.0)
    return torch.from_numpy(np.asarray(value))


def images(shape: list[int], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


# -- the compact transformers (arXiv 2104.05704), in the authors' tensor names -----------------------------------------
def compact_shapes(
        img: tuple[int, int], chans: int, classes: int, dim: int, depth: int, ratio: int, kernel: int, convs: int,
        class_token: bool, table: bool = True) -> dict[str, list[int]]:
    """Names and shapes of the authors' checkpoint. `convs=0` is a patch convolution."""
    shapes: dict[str, list[int]] = {}
    widths = [chans, *[64] * (max(convs, 1) - 1), dim]
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        shapes[f'tokenizer.conv_layers.{i}.0.weight'] = [b, a, kernel, kernel]
    if not convs:
        shapes['tokenizer.conv_layers.0.0.bias'] = [dim]
    if class_token:
        shapes['classifier.class_emb'] = [1, 1, dim]
    else:
        shapes.update({'classifier.attention_pool.weight': [1, dim], 'classifier.attention_pool.bias': [1]})
    if table:
        tokens = compact_tokens(torch.zeros(1, chans, *img), {k: torch.zeros(s) for k, s in shapes.items()}).shape[1]
        shapes['classifier.positional_emb'] = [1, tokens + class_token, dim]
    for i in range(depth):
        block = {
            'pre_norm.weight': [dim], 'pre_norm.bias': [dim], 'self_attn.qkv.weight': [3 * dim, dim],
            'self_attn.proj.weight': [dim, dim], 'self_attn.proj.bias': [dim],
            'linear1.weight': [ratio * dim, dim], 'linear1.bias': [ratio * dim], 'norm1.weight': [dim],
            'norm1.bias': [dim], 'linear2.weight': [dim, ratio * dim], 'linear2.bias': [dim]}
        shapes.update({f'classifier.blocks.{i}.{name}': shape for name, shape in block.items()})
    shapes.update({'classifier.norm.weight': [dim], 'classifier.norm.bias': [dim]})
    if classes:
        shapes.update({'classifier.fc.weight': [classes, dim], 'classifier.fc.bias': [classes]})
    return shapes


def compact_tokens(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    patch = 'tokenizer.conv_layers.0.0.bias' in state
    for i in range(sum(name.startswith('tokenizer') and name.endswith('weight') for name in state)):
        weight = state[f'tokenizer.conv_layers.{i}.0.weight']
        size = weight.shape[-1]
        if patch:
            x = F.conv2d(x, weight, state['tokenizer.conv_layers.0.0.bias'], stride=size)
        else:
            x = F.relu(F.conv2d(x, weight, stride=max(1, size // 2 - 1), padding=max(1, size // 2)))
            x = F.max_pool2d(x, 3, 2, 1)
    return x.flatten(2).transpose(1, 2)


def compact_forward(x: Tensor, state: dict[str, Tensor], heads: int) -> Tensor:
    """Logits, or the pooled features where the state has no classifier."""
    tokens = compact_tokens(x, state)
    c = {name.removeprefix('classifier.'): tensor for name, tensor in state.items()}
    if 'class_emb' in c:
        tokens = torch.cat([c['class_emb'].expand(len(x), -1, -1), tokens], 1)
    tokens = tokens + c.get('positional_emb', 0)
    depth = sum(name.endswith('norm1.weight') for name in c)
    for i in range(depth):
        tokens = compact_block(tokens, {k.removeprefix(f'blocks.{i}.'): v for k, v in c.items()}, heads)
    tokens = _norm(tokens, c, 'norm')
    if 'class_emb' in c:
        pooled = tokens[:, 0]
    else:
        weights = (tokens @ c['attention_pool.weight'].T + c['attention_pool.bias']).softmax(1)
        pooled = (weights * tokens).sum(1)
    return pooled @ c['fc.weight'].T + c['fc.bias'] if 'fc.weight' in c else pooled


def compact_block(x: Tensor, b: dict[str, Tensor], heads: int) -> Tensor:
    batch, count, dim = x.shape
    qkv = _norm(x, b, 'pre_norm') @ b['self_attn.qkv.weight'].T
    q, k, v = qkv.reshape(batch, count, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    attn = (q @ k.transpose(-1, -2) / math.sqrt(dim // heads)).softmax(-1) @ v
    x = x + attn.transpose(1, 2).reshape(batch, count, dim) @ b['self_attn.proj.weight'].T + b['self_attn.proj.bias']
    x = _norm(x, b, 'norm1')
    hidden = F.gelu(x @ b['linear1.weight'].T + b['linear1.bias'])
    return x + hidden @ b['linear2.weight'].T + b['linear2.bias']


def _norm(x: Tensor, state: dict[str, Tensor], name: str, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f'{name}.weight'] + state[f'{name}.bias']


# -- the usual ViT in timm's names, with what MAE-Lite (arXiv 2205.14443) and MAE-ViT (2402.03752) make of it ----------
def vit_shapes(
        img: tuple[int, int], patch: int, classes: int, dim: int, depth: int, ratio: int, heads: int = 0,
        qkv_bias: bool = True, norm: str = 'fc_norm', chans: int = 3) -> dict[str, list[int]]:
    """Names and shapes. `heads`: with tables of relative positions for so many; `norm`: the name of the last norm."""
    rows, cols = img[0] // patch, img[1] // patch
    shapes: dict[str, list[int]] = {
        'cls_token': [1, 1, dim], 'pos_embed': [1, 1 + rows * cols, dim],
        'patch_embed.proj.weight': [dim, chans, patch, patch], 'patch_embed.proj.bias': [dim]}
    for i in range(depth):
        block = vit_block_shapes(dim, ratio, qkv_bias)
        if heads:
            block['attn.relative_position_bias_table'] = [(2 * rows - 1) * (2 * cols - 1) + 3, heads]
        shapes.update({f'blocks.{i}.{name}': shape for name, shape in block.items()})
    shapes.update({f'{norm}.weight': [dim], f'{norm}.bias': [dim]})
    if classes:
        shapes.update({'head.weight': [classes, dim], 'head.bias': [classes]})
    return shapes


def vit_block_shapes(dim: int, ratio: int, qkv_bias: bool = True) -> dict[str, list[int]]:
    shapes = {
        'norm1.weight': [dim], 'norm1.bias': [dim], 'attn.qkv.weight': [3 * dim, dim], 'attn.proj.weight': [dim, dim],
        'attn.proj.bias': [dim], 'norm2.weight': [dim], 'norm2.bias': [dim], 'mlp.fc1.weight': [ratio * dim, dim],
        'mlp.fc1.bias': [ratio * dim], 'mlp.fc2.weight': [dim, ratio * dim], 'mlp.fc2.bias': [dim]}
    return {**shapes, 'attn.qkv.bias': [3 * dim]} if qkv_bias else shapes


def mae_shapes(
        img: tuple[int, int], patch: int, dim: int, depth: int, ratio: int, decoder: int, decoder_depth: int = 1,
) -> dict[str, list[int]]:
    """The authors' pre-training model, without the fixed tables."""
    shapes = vit_shapes(img, patch, 0, dim, depth, ratio, norm='norm')
    del shapes['pos_embed']
    shapes.update({
        'mask_token': [1, 1, decoder], 'decoder_embed.weight': [decoder, dim], 'decoder_embed.bias': [decoder],
        'decoder_norm.weight': [decoder], 'decoder_norm.bias': [decoder],
        'decoder_pred.weight': [3 * patch ** 2, decoder], 'decoder_pred.bias': [3 * patch ** 2]})
    for i in range(decoder_depth):
        shapes.update({f'decoder_blocks.{i}.{k}': v for k, v in vit_block_shapes(decoder, 4).items()})
    return shapes


def vit_forward(x: Tensor, state: dict[str, Tensor], heads: int, act: Any = F.gelu) -> Tensor:
    """Logits: of the class token behind `norm`, or of the mean of the others, which is then normalised."""
    tokens = vit_tokens(x, state, heads, act)
    pooled = _norm(tokens[:, 1:].mean(1), state, 'fc_norm', 1e-6) if 'fc_norm.weight' in state else tokens[:, 0]
    return pooled @ state['head.weight'].T + state['head.bias'] if 'head.weight' in state else pooled


def vit_tokens(
        x: Tensor, state: dict[str, Tensor], heads: int, act: Any = F.gelu, keep: Tensor | None = None) -> Tensor:
    """[B, 1 + K, D], of the patches `keep` of each image, or of all."""
    patch = state['patch_embed.proj.weight'].shape[-1]
    grid = (x.shape[2] // patch, x.shape[3] // patch)
    x = F.conv2d(x, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'], stride=patch)
    x = x.flatten(2).transpose(1, 2) + state['pos_embed'][:, 1:]
    rows = torch.arange(grid[0] * grid[1]).expand(len(x), -1) if keep is None else keep
    x = torch.stack([image[row] for image, row in zip(x, rows, strict=True)])
    x = torch.cat([(state['cls_token'] + state['pos_embed'][:, :1]).expand(len(x), -1, -1), x], 1)
    for i in range(sum(name.startswith('blocks') and name.endswith('norm1.weight') for name in state)):
        block = {k.removeprefix(f'blocks.{i}.'): v for k, v in state.items()}
        table = block.get('attn.relative_position_bias_table')
        bias = None if table is None else torch.stack([_relative_bias(table, grid, row) for row in rows])
        x = vit_block(x, block, heads, act, bias)
    return _norm(x, state, 'norm', 1e-6) if 'norm.weight' in state else x


def _relative_bias(table: Tensor, grid: tuple[int, int], row: Tensor) -> Tensor:
    """[H, 1 + K, 1 + K] of the patches `row` [K]: by offset; class to patch, patch to class, class to class."""
    y, x = row // grid[1], row % grid[1]
    offset = (y[:, None] - y + grid[0] - 1) * (2 * grid[1] - 1) + x[:, None] - x + grid[1] - 1
    index = torch.full((len(row) + 1, len(row) + 1), len(table) - 1)
    index[1:, 1:], index[0, 1:], index[1:, 0] = offset, len(table) - 3, len(table) - 2
    return table[index].permute(2, 0, 1)


def vit_block(x: Tensor, b: dict[str, Tensor], heads: int, act: Any = F.gelu, bias: Tensor | None = None) -> Tensor:
    batch, count, dim = x.shape
    attn = vit_logits(x, b, heads, bias).softmax(-1)
    v = vit_qkv(x, b, heads)[2]
    x = x + (attn @ v).transpose(1, 2).reshape(batch, count, dim) @ b['attn.proj.weight'].T + b['attn.proj.bias']
    hidden = act(_norm(x, b, 'norm2', 1e-6) @ b['mlp.fc1.weight'].T + b['mlp.fc1.bias'])
    return x + hidden @ b['mlp.fc2.weight'].T + b['mlp.fc2.bias']


def vit_qkv(x: Tensor, b: dict[str, Tensor], heads: int) -> Tensor:
    qkv = _norm(x, b, 'norm1', 1e-6) @ b['attn.qkv.weight'].T + b.get('attn.qkv.bias', 0)
    return qkv.reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)


def vit_logits(x: Tensor, b: dict[str, Tensor], heads: int, bias: Tensor | None = None) -> Tensor:
    q, k, _ = vit_qkv(x, b, heads)
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + (0 if bias is None else bias)


def sincos2d(grid: tuple[int, int], dim: int, row_first: bool = False) -> Tensor:
    """The fixed table [1, 1 + N, dim], as the authors keep it, in single precision."""
    table = np.zeros((1 + grid[0] * grid[1], dim))
    for token in range(grid[0] * grid[1]):
        places = (token // grid[1], token % grid[1])
        for half, place in enumerate(places if row_first else places[::-1]):
            for i in range(dim // 4):
                angle = place / 10000 ** (i / (dim // 4))
                start = half * dim // 2 + i
                table[1 + token, start], table[1 + token, start + dim // 4] = math.sin(angle), math.cos(angle)
    return torch.from_numpy(table.astype(np.float32)).double()[None]


def mae_forward(
        x: Tensor, state: dict[str, Tensor], heads: int, decoder_heads: int, noise: Tensor, mask_ratio: float = 0.75,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, prediction [B, N, P * P * C] and mask [B, N] of the authors' pre-training model, image by image."""
    patch = state['patch_embed.proj.weight'].shape[-1]
    grid, dim = (x.shape[2] // patch, x.shape[3] // patch), state['cls_token'].shape[2]
    order = noise.argsort(1)
    keep = order[:, :int(order.shape[1] * (1 - mask_ratio))]
    tokens = vit_tokens(x, {**state, 'pos_embed': sincos2d(grid, dim)}, heads, keep=keep)
    tokens = tokens @ state['decoder_embed.weight'].T + state['decoder_embed.bias']
    mask, full = torch.ones_like(noise), state['mask_token'].repeat(len(x), 1 + order.shape[1], 1)
    for image in range(len(x)):
        full[image, 0], full[image, 1 + keep[image]], mask[image, keep[image]] = tokens[image, 0], tokens[image, 1:], 0
    full = full + sincos2d(grid, full.shape[2])
    for i in range(sum(name.startswith('decoder_blocks') and name.endswith('norm1.weight') for name in state)):
        full = vit_block(full, {k.removeprefix(f'decoder_blocks.{i}.'): v for k, v in state.items()}, decoder_heads)
    full = _norm(full, state, 'decoder_norm', 1e-6)[:, 1:]
    prediction = full @ state['decoder_pred.weight'].T + state['decoder_pred.bias']
    target = F.unfold(x, patch, stride=patch).transpose(1, 2)  # channel, row, column
    target = target.unflatten(2, (x.shape[1], -1)).transpose(2, 3).flatten(2)
    target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    return (prediction - target)[mask.bool()].pow(2).mean(), prediction, mask


COMPACT_SHAPES = {2: (128, 2, 1), 4: (128, 2, 1), 6: (256, 4, 2), 7: (256, 4, 2), 14: (384, 6, 3)}


def parse(name: str) -> dict:
    """Shape arguments of `parity.compact_shapes` from one of our names, which say it all."""
    family, _, rest = name.removesuffix('_sine').replace('vit_lite', 'vitlite').partition('_')
    depth, tokenizer = (rest or '7_4').split('_')
    dim, heads, ratio = COMPACT_SHAPES[int(depth)]
    kernel, _, convs = tokenizer.partition('x')
    return dict(dim=dim, depth=int(depth), ratio=ratio, kernel=int(kernel), convs=int(convs or 0),
                class_token=family == 'vitlite', heads=heads)


def authors_state(name: str, img: tuple[int, int], chans: int, classes: int, table: bool = True) -> dict:
    shape = {key: value for key, value in parse(name).items() if key != 'heads'}
    return {key: fill(key, value) for key, value in compact_shapes(img, chans, classes, table=table, **shape).items()}
