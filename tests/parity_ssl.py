"""ViT, CaiT and Swin of self-distillation (arXiv 2210.07240) written out, in the authors' tensor names.

Nothing of the package is used. The fixtures of the authors' own numbers hold these functions to account.
"""
from functools import partial

import parity
import parity_sl_swin
import torch
import torch.nn.functional as F
from parity import fill
from torch import Tensor

_norm = partial(parity._norm, eps=1e-6)


def fill_all(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: fill(name, shape) for name, shape in shapes.items()}


# -- names and shapes --------------------------------------------------------------------------------------------------
def _linears(**sizes: tuple[int, int]) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for name, (out, width) in sizes.items():
        shapes.update({f'{name.replace("__", ".")}.weight': [out, width], f'{name.replace("__", ".")}.bias': [out]})
    return shapes


def _block_shapes(prefix: str, hidden: int, **attn: tuple[int, int]) -> dict[str, list[int]]:
    shapes = {**_linears(**attn, attn__proj=(192, 192), mlp__fc1=(hidden, 192), mlp__fc2=(192, hidden)),
              **{f'{norm}.{kind}': [192] for norm in ('norm1', 'norm2') for kind in ('weight', 'bias')}}
    return {f'{prefix}.{name}': shape for name, shape in shapes.items()}


def _ends(classes: int) -> dict[str, list[int]]:
    shapes = {'norm.weight': [192], 'norm.bias': [192]}
    return {**shapes, **_linears(head=(classes, 192))} if classes else shapes


def vit_shapes(
        img: tuple[int, int], chans: int, classes: int, patch: int, depth: int = 9) -> dict[str, list[int]]:
    tokens = (img[0] // patch) * (img[1] // patch) + 1
    shapes = {'cls_token': [1, 1, 192], 'pos_embed': [1, tokens, 192],
              'patch_embed.proj.weight': [192, chans, patch, patch], 'patch_embed.proj.bias': [192]}
    for i in range(depth):
        shapes.update(_block_shapes(f'blocks.{i}', 384, attn__qkv=(576, 192)))
    return {**shapes, **_ends(classes)}


def cait_shapes(
        img: tuple[int, int], chans: int, classes: int, patch: int, depth: int = 24, class_depth: int = 2,
) -> dict[str, list[int]]:
    tokens = (img[0] // patch) * (img[1] // patch)
    shapes = {'cls_token': [1, 1, 192], 'pos_embed': [1, tokens, 192],
              'patch_embed.1.weight': [192, chans * patch ** 2], 'patch_embed.1.bias': [192]}
    for i in range(depth):
        shapes.update(_block_shapes(
            f'blocks.{i}', 384, attn__qkv=(576, 192), attn__proj_l=(4, 4), attn__proj_w=(4, 4)))
    for i in range(class_depth):
        projections = {f'attn__{name}': (192, 192) for name in 'qkv'}
        shapes.update(_block_shapes(f'blocks_token_only.{i}', 768, **projections))
    for prefix in (*(f'blocks.{i}' for i in range(depth)), *(f'blocks_token_only.{i}' for i in range(class_depth))):
        shapes.update({f'{prefix}.gamma_1': [192], f'{prefix}.gamma_2': [192]})
    return {**shapes, **_ends(classes)}


def swin_shapes(img: tuple[int, int], chans: int, classes: int, patch: int) -> dict[str, list[int]]:
    shapes = parity_sl_swin.swin_shapes(img, chans, classes, patch, spt=False, lsa=False, masks=False)
    return {name: shape for name, shape in shapes.items() if name != 'absolute_pos_embed'}


# -- forward -----------------------------------------------------------------------------------------------------------
def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return x @ state[f'{name}.weight'].T + state[f'{name}.bias']


def mlp(x: Tensor, s: dict[str, Tensor], block: str) -> Tensor:
    return linear(F.gelu(linear(_norm(x, s, f'{block}.norm2'), s, f'{block}.mlp.fc1')), s, f'{block}.mlp.fc2')


def head(x: Tensor, s: dict[str, Tensor]) -> Tensor:
    x = _norm(x, s, 'norm')
    return linear(x, s, 'head') if 'head.weight' in s else x


def positions(s: dict[str, Tensor], built: tuple[int, int], grid: tuple[int, int], prefix: int) -> Tensor:
    """The table for another grid of tokens: bicubic, antialiased, in single precision."""
    table = s['pos_embed']
    if built == grid:
        return table
    maps = table[:, prefix:].transpose(1, 2).unflatten(2, built).float()
    maps = F.interpolate(maps, grid, mode='bicubic', antialias=True).double()
    return torch.cat([table[:, :prefix], maps.flatten(2).transpose(1, 2)], 1)


def depth_of(s: dict[str, Tensor], name: str) -> int:
    return sum(key.startswith(f'{name}.') and key.endswith('norm1.weight') for key in s)


def vit_forward(x: Tensor, s: dict[str, Tensor], patch: int, built: tuple[int, int] | None = None) -> Tensor:
    """Logits, or the features of the class token. `built`: the image size of the table, if not that of x."""
    size = (x.shape[2] // patch, x.shape[3] // patch)
    own = (built[0] // patch, built[1] // patch) if built else size
    x = F.conv2d(x, s['patch_embed.proj.weight'], s['patch_embed.proj.bias'], patch).flatten(2).transpose(1, 2)
    x = torch.cat([s['cls_token'].expand(len(x), -1, -1), x], 1) + positions(s, own, size, 1)
    for i in range(depth_of(s, 'blocks')):
        name = f'blocks.{i}'
        qkv = linear(_norm(x, s, f'{name}.norm1'), s, f'{name}.attn.qkv').unflatten(2, (3, 12, 16))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = (q @ k.transpose(-1, -2) / 4).softmax(-1) @ v
        x = x + linear(attended.transpose(1, 2).flatten(2), s, f'{name}.attn.proj')
        x = x + mlp(x, s, name)
    return head(x[:, 0], s)


def cait_forward(x: Tensor, s: dict[str, Tensor], patch: int, built: tuple[int, int] | None = None) -> Tensor:
    """As `vit_forward`."""
    size = (x.shape[2] // patch, x.shape[3] // patch)
    own = (built[0] // patch, built[1] // patch) if built else size
    x = F.unfold(x, patch, stride=patch).unflatten(1, (-1, patch * patch)).permute(0, 3, 2, 1).flatten(2)
    x = linear(x, s, 'patch_embed.1') + positions(s, own, size, 0)
    for i in range(depth_of(s, 'blocks')):
        name = f'blocks.{i}'
        qkv = linear(_norm(x, s, f'{name}.norm1'), s, f'{name}.attn.qkv').unflatten(2, (3, 4, 48))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        logits = (q @ k.transpose(-1, -2) / 48 ** 0.5).permute(0, 2, 3, 1)  # heads last
        attn = linear(linear(logits, s, f'{name}.attn.proj_l').softmax(2), s, f'{name}.attn.proj_w')
        attended = (attn.permute(0, 3, 1, 2) @ v).transpose(1, 2).flatten(2)
        x = x + s[f'{name}.gamma_1'] * linear(attended, s, f'{name}.attn.proj')
        x = x + s[f'{name}.gamma_2'] * mlp(x, s, name)
    token = s['cls_token'].expand(len(x), -1, -1)
    for i in range(depth_of(s, 'blocks_token_only')):
        name = f'blocks_token_only.{i}'
        every = _norm(torch.cat([token, x], 1), s, f'{name}.norm1')
        q, k, v = (linear(tokens, s, f'{name}.attn.{part}').unflatten(2, (4, 48)).transpose(1, 2)
                   for part, tokens in (('q', every[:, :1]), ('k', every), ('v', every)))
        attended = (q @ k.transpose(-1, -2) / 48 ** 0.5).softmax(-1) @ v
        token = token + s[f'{name}.gamma_1'] * linear(attended.transpose(1, 2).flatten(2), s, f'{name}.attn.proj')
        token = token + s[f'{name}.gamma_2'] * mlp(token, s, name)
    return head(token[:, 0], s)


def swin_forward(x: Tensor, s: dict[str, Tensor], patch: int, built: tuple[int, int] | None = None) -> Tensor:
    """Token by token: what only fills up a window is not there. `built` makes no difference."""
    return parity_sl_swin.swin_forward(x, s, patch, eps=1e-6)
