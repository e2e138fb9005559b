"""Parity fixtures: how their tensors are made, and the compact transformers' definition written out plainly.

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
