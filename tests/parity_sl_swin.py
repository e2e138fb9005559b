"""SPT/LSA's Swin written out plainly, in the authors' tensor names: the yardstick of test_sl_swin.py."""
import itertools
import math

import torch
import torch.nn.functional as F
from parity import _norm
from torch import Tensor

DEPTHS, HEADS, DIMS = (2, 6, 4), (3, 6, 12), (96, 192, 384)


def swin_shapes(
        img: tuple[int, int], chans: int, classes: int, patch: int, spt: bool, lsa: bool, masks: bool = True,
) -> dict[str, list[int]]:
    """Names and shapes of the authors' checkpoint (of theirs; they build square images of a fitting size only)."""
    rows, cols = img[0] // patch, img[1] // patch
    shapes = {'absolute_pos_embed': [1, rows * cols, 96]}
    if spt:
        shapes.update(_linear('patch_embed.merging', 5 * chans * patch ** 2, 96, bias=True))
    else:
        shapes.update({'patch_embed.proj.weight': [96, chans, patch, patch], 'patch_embed.proj.bias': [96],
                       'patch_embed.norm.weight': [96], 'patch_embed.norm.bias': [96]})
    for i, (depth, heads, dim) in enumerate(zip(DEPTHS, HEADS, DIMS, strict=True)):
        for j in range(depth):
            block = {'norm1.weight': [dim], 'norm1.bias': [dim], 'attn.relative_position_bias_table': [49, heads],
                     'attn.qkv.weight': [3 * dim, dim], 'attn.qkv.bias': [3 * dim], 'attn.proj.weight': [dim, dim],
                     'attn.proj.bias': [dim], 'norm2.weight': [dim], 'norm2.bias': [dim],
                     'mlp.fc1.weight': [2 * dim, dim], 'mlp.fc1.bias': [2 * dim], 'mlp.fc2.weight': [dim, 2 * dim],
                     'mlp.fc2.bias': [dim]}
            if lsa:
                block['attn.scale'] = [heads]
            if masks and j % 2 and min(rows, cols) > 4:
                block['attn_mask'] = [math.ceil(rows / 4) * math.ceil(cols / 4), 16, 16]
            shapes.update({f'layers.{i}.blocks.{j}.{name}': shape for name, shape in block.items()})
        if i < 2 and spt:
            shapes.update(_linear(f'layers.{i}.downsample.merging', 20 * dim, 2 * dim, bias=True))
        elif i < 2:
            shapes.update({f'layers.{i}.downsample.norm.weight': [4 * dim],
                           f'layers.{i}.downsample.norm.bias': [4 * dim],
                           f'layers.{i}.downsample.reduction.weight': [2 * dim, 4 * dim]})
        rows, cols = rows // 2, cols // 2
    shapes.update({'norm.weight': [384], 'norm.bias': [384]})
    if classes:
        shapes.update({'head.weight': [classes, 384], 'head.bias': [classes]})
    return shapes


def _linear(name: str, width: int, dim: int, bias: bool) -> dict[str, list[int]]:
    return {f'{name}.1.weight': [width], f'{name}.1.bias': [width], f'{name}.2.weight': [dim, width],
            f'{name}.2.bias': [dim]}


def swin_forward(x: Tensor, state: dict[str, Tensor], patch: int, taken: list[Tensor] | None = None) -> Tensor:
    """Logits, or pooled features where the state has no classifier; `taken` gets each block's [B, windows, heads, N, N]
    attention."""
    if 'patch_embed.merging.1.weight' in state:
        x = _shifted(x.permute(0, 2, 3, 1), state, 'patch_embed.merging', patch)
    else:
        weight = state['patch_embed.proj.weight']
        x = _norm(F.conv2d(x, weight, state['patch_embed.proj.bias'], patch).permute(0, 2, 3, 1), state,
                  'patch_embed.norm')
    x = x + state['absolute_pos_embed'].reshape(1, *x.shape[1:])
    for i, depth in enumerate(DEPTHS):
        for j in range(depth):
            b = {k.removeprefix(f'layers.{i}.blocks.{j}.'): v for k, v in state.items()}
            shift = 2 if j % 2 and min(x.shape[1:3]) > 4 else 0
            x = x + _attention(_norm(x, b, 'norm1'), b, HEADS[i], shift, taken)
            hidden = F.gelu(_norm(x, b, 'norm2') @ b['mlp.fc1.weight'].T + b['mlp.fc1.bias'])
            x = x + hidden @ b['mlp.fc2.weight'].T + b['mlp.fc2.bias']
        name = f'layers.{i}.downsample'
        if f'{name}.merging.1.weight' in state:
            x = _shifted(x, state, f'{name}.merging', 2)
        elif f'{name}.norm.weight' in state:
            rows, cols = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
            quarters = [x[:, a:rows:2, b:cols:2] for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
            x = _norm(torch.cat(quarters, -1), state, f'{name}.norm') @ state[f'{name}.reduction.weight'].T
    x = _norm(x, state, 'norm').mean((1, 2))
    return x @ state['head.weight'].T + state['head.bias'] if 'head.weight' in state else x


def _shifted(x: Tensor, state: dict[str, Tensor], name: str, patch: int) -> Tensor:
    """Shifted patch tokenization of a map [B, H, W, C], one patch at a time."""
    d = patch // 2
    height, width = x.shape[1:3]
    rows = []
    for r, c in itertools.product(range(height // patch), range(width // patch)):
        values = []
        for a, b in itertools.product(range(patch), repeat=2):
            for down, right in ((0, 0), (d, d), (d, -d), (-d, d), (-d, -d)):
                y, z = r * patch + a - down, c * patch + b - right
                inside = 0 <= y < height and 0 <= z < width
                values.append(x[:, y, z] if inside else torch.zeros_like(x[:, 0, 0]))
        rows.append(torch.cat(values, -1))
    out = _norm(torch.stack(rows, 1), state, f'{name}.1') @ state[f'{name}.2.weight'].T + state[f'{name}.2.bias']
    return out.unflatten(1, (height // patch, width // patch))


def _attention(x: Tensor, b: dict[str, Tensor], heads: int, shift: int, taken: list[Tensor] | None) -> Tensor:
    """Every window by itself: which tokens it holds, and which of them may see each other, token by token."""
    height, width = x.shape[1:3]
    rows, cols = -(-height // 4) * 4, -(-width // 4) * 4
    out = torch.zeros_like(x)
    attention = []
    for w, (top, left) in enumerate(itertools.product(range(0, rows, 4), range(0, cols, 4))):
        places = [((top + r + shift) % rows, (left + c + shift) % cols) for r in range(4) for c in range(4)]
        held = [n for n, (y, z) in enumerate(places) if y < height and z < width]
        if not held:
            continue
        tokens = torch.stack([x[:, places[n][0], places[n][1]] for n in held], 1)
        side = [(places[n][0] < shift, places[n][1] < shift) for n in held]
        mask = torch.tensor([[0. if a == c else -100. for c in side] for a in side], dtype=x.dtype)
        if 'attn_mask' in b:
            mask = b['attn_mask'][w][held][:, held]
        attended, weights = _window(tokens, b, heads, mask, held)
        attention.append(weights)
        for i, n in enumerate(held):
            out[:, places[n][0], places[n][1]] = attended[:, i]
    if taken is not None:
        taken.extend(attention)
    return out @ b['attn.proj.weight'].T + b['attn.proj.bias']


def _window(
        x: Tensor, b: dict[str, Tensor], heads: int, mask: Tensor, held: list[int]) -> tuple[Tensor, Tensor]:
    qkv = (x @ b['attn.qkv.weight'].T + b['attn.qkv.bias']).unflatten(2, (3, heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scale = b['attn.scale'][:, None, None] if 'attn.scale' in b else 1 / math.sqrt(q.shape[-1])
    index = torch.tensor([[(m // 4 - n // 4 + 3) * 7 + m % 4 - n % 4 + 3 for n in held] for m in held])
    bias = b['attn.relative_position_bias_table'][index].permute(2, 0, 1)
    logits = q @ k.transpose(-1, -2) * scale + bias
    if 'attn.scale' in b and len(held) > 1:
        logits = logits.masked_fill(torch.eye(len(held), dtype=torch.bool), -987654321)
    weights = (logits + mask).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2), weights
