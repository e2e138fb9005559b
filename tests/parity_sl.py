"""ViT and PiT with shifted patches and locality attention (arXiv 2112.13492) written out, in the authors' names.

Nothing of the package is used. The fixtures of the authors' own numbers hold these functions to account.
"""
import torch
import torch.nn.functional as F
from parity import fill
from torch import Tensor


def fill_all(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: fill(name, shape) for name, shape in shapes.items()}


def under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


# -- names and shapes --------------------------------------------------------------------------------------------------
def block_shapes(dim: int, heads: int, ratio: int, lsa: bool) -> dict[str, list[int]]:
    shapes = {
        '0.norm.weight': [dim], '0.norm.bias': [dim], '0.fn.to_qkv.weight': [3 * dim, dim],
        '0.fn.to_out.0.weight': [dim, dim], '0.fn.to_out.0.bias': [dim], '1.norm.weight': [dim], '1.norm.bias': [dim],
        '1.fn.net.0.weight': [ratio * dim, dim], '1.fn.net.0.bias': [ratio * dim],
        '1.fn.net.3.weight': [dim, ratio * dim], '1.fn.net.3.bias': [dim]}
    return {**shapes, '0.fn.scale': [heads]} if lsa else shapes


def merging_shapes(prefix: str, width: int, dim: int) -> dict[str, list[int]]:
    return {f'{prefix}merging.1.weight': [width], f'{prefix}merging.1.bias': [width],
            f'{prefix}merging.2.weight': [dim, width], f'{prefix}merging.2.bias': [dim]}


def head_shapes(dim: int, classes: int) -> dict[str, list[int]]:
    shapes = {'mlp_head.0.weight': [dim], 'mlp_head.0.bias': [dim]}
    return {**shapes, 'mlp_head.1.weight': [classes, dim], 'mlp_head.1.bias': [classes]} if classes else shapes


def vit_shapes(
        img: tuple[int, int], chans: int, classes: int, patch: int, spt: bool, lsa: bool, depth: int = 9,
        dim: int = 192, heads: int = 12) -> dict[str, list[int]]:
    tokens = (img[0] // patch) * (img[1] // patch) + 1
    shapes = {'pos_embedding': [1, tokens, dim], 'cls_token': [1, 1, dim]}
    if spt:
        shapes.update(merging_shapes('to_patch_embedding.', 5 * chans * patch ** 2, dim))
    else:
        shapes.update({'to_patch_embedding.1.weight': [dim, chans * patch ** 2], 'to_patch_embedding.1.bias': [dim]})
    for i in range(depth):
        block = block_shapes(dim, heads, 2, lsa)
        shapes.update({f'transformer.layers.{i}.{name}': shape for name, shape in block.items()})
    return {**shapes, **head_shapes(dim, classes)}


def pit_shapes(
        img: tuple[int, int], chans: int, classes: int, patch: int, spt: bool, lsa: bool,
        depths: tuple[int, ...] = (2, 6, 4)) -> dict[str, list[int]]:
    """The names inside a convolutional pooling are ours: no fixture has them, and the filter goes by shape."""
    tokens = (img[0] // patch) * (img[1] // patch) + 1
    shapes = {'pos_embedding': [1, tokens, 96], 'cls_token': [1, 1, 96]}
    if spt:
        shapes.update(merging_shapes('to_patch_embedding.', 5 * chans * patch ** 2, 96))
    else:
        shapes.update({'to_patch_embedding.0.weight': [96, chans, patch, patch], 'to_patch_embedding.0.bias': [96]})
    for stage, depth in enumerate(depths):
        dim, pool = 96 * 2 ** stage, f'layers.{2 * stage - 1}.'
        for i in range(depth):
            block = block_shapes(dim, dim // 48, 2, lsa)
            shapes.update({f'layers.{2 * stage}.layers.{i}.{name}': shape for name, shape in block.items()})
        if stage and spt:
            shapes.update({f'{pool}class_linear.weight': [dim, dim // 2], f'{pool}class_linear.bias': [dim]})
            shapes.update(merging_shapes(pool, 10 * dim, dim))
        elif stage:
            shapes.update({f'{pool}map.depth.weight': [dim, 1, 3, 3], f'{pool}map.depth.bias': [dim],
                           f'{pool}map.point.weight': [dim, dim, 1, 1], f'{pool}map.point.bias': [dim],
                           f'{pool}token.weight': [dim, dim // 2], f'{pool}token.bias': [dim]})
    return {**shapes, **head_shapes(dim, classes)}


# -- forward -----------------------------------------------------------------------------------------------------------
def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return x @ state[f'{name}.weight'].T + state.get(f'{name}.bias', 0)


def layer_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f'{name}.weight'] + state[f'{name}.bias']


def moved(x: Tensor, down: int, right: int) -> Tensor:
    """Content moved, zero moved in, pixel by pixel."""
    out = torch.zeros_like(x)
    for row in range(x.shape[2]):
        for col in range(x.shape[3]):
            if 0 <= row - down < x.shape[2] and 0 <= col - right < x.shape[3]:
                out[:, :, row, col] = x[:, :, row - down, col - right]
    return out


def cut(x: Tensor, size: int) -> Tensor:
    """Patches, their values ordered by row, column, channel."""
    rows, cols = x.shape[2] // size, x.shape[3] // size
    return torch.stack([
        x[:, :, r * size:(r + 1) * size, c * size:(c + 1) * size].permute(0, 2, 3, 1).flatten(1)
        for r in range(rows) for c in range(cols)], 1)


def shifted_patches(x: Tensor, state: dict[str, Tensor], size: int) -> Tensor:
    s = size // 2
    five = torch.cat([moved(x, *by) for by in ((0, 0), (s, s), (s, -s), (-s, s), (-s, -s))], 1)
    return linear(layer_norm(cut(five, size), state, 'merging.1'), state, 'merging.2')


def block(x: Tensor, state: dict[str, Tensor], heads: int) -> Tensor:
    batch, tokens, dim = x.shape
    q, k, v = (layer_norm(x, state, '0.norm') @ state['0.fn.to_qkv.weight'].T).reshape(
        batch, tokens, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    logits = torch.einsum('bhid,bhjd->bhij', q, k)
    if '0.fn.scale' in state:
        logits = logits * state['0.fn.scale'].view(1, heads, 1, 1)
        logits = logits.masked_fill(torch.eye(tokens, dtype=torch.bool), float('-inf') if tokens > 1 else 0.)
    else:
        logits = logits * (dim // heads) ** -0.5
    out = torch.einsum('bhij,bhjd->bihd', logits.softmax(-1), v).reshape(batch, tokens, dim)
    x = x + linear(out, state, '0.fn.to_out.0')
    hidden = linear(layer_norm(x, state, '1.norm'), state, '1.fn.net.0')
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2 ** 0.5))
    return x + linear(hidden, state, '1.fn.net.3')


def embed(x: Tensor, state: dict[str, Tensor], size: int) -> Tensor:
    if 'to_patch_embedding.merging.1.weight' in state:
        tokens = shifted_patches(x, under(state, 'to_patch_embedding.'), size)
    elif 'to_patch_embedding.1.weight' in state:
        tokens = linear(cut(x, size), state, 'to_patch_embedding.1')
    else:
        tokens = F.conv2d(x, state['to_patch_embedding.0.weight'], state['to_patch_embedding.0.bias'], stride=size)
        tokens = tokens.flatten(2).transpose(1, 2)
    return torch.cat([state['cls_token'].expand(len(x), -1, -1), tokens], 1) + state['pos_embedding']


def read_out(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    x = layer_norm(x, state, 'mlp_head.0')[:, 0]
    return linear(x, state, 'mlp_head.1') if 'mlp_head.1.weight' in state else x


def vit_forward(x: Tensor, state: dict[str, Tensor], patch: int, heads: int = 12) -> Tensor:
    x = embed(x, state, patch)
    for i in range(sum(name.endswith('.0.norm.weight') for name in state)):
        x = block(x, under(state, f'transformer.layers.{i}.'), heads)
    return read_out(x, state)


def pit_forward(image: Tensor, state: dict[str, Tensor], patch: int) -> Tensor:
    x, grid = embed(image, state, patch), (image.shape[2] // patch, image.shape[3] // patch)
    for layer in range(5):
        own = under(state, f'layers.{layer}.')
        if layer % 2:
            x, grid = pit_pool(x, own, grid)
        for i in range(sum(name.endswith('.0.norm.weight') for name in own)):
            x = block(x, under(own, f'layers.{i}.'), x.shape[2] // 48)
    return read_out(x, state)


def pit_pool(x: Tensor, state: dict[str, Tensor], grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    maps = x[:, 1:].transpose(1, 2).reshape(x.shape[0], x.shape[2], *grid)
    if 'merging.1.weight' in state:
        token, tokens = linear(x[:, :1], state, 'class_linear'), shifted_patches(maps, state, 2)
        return torch.cat([token, tokens], 1), (grid[0] // 2, grid[1] // 2)
    maps = F.conv2d(
        maps, state['map.depth.weight'], state['map.depth.bias'], stride=2, padding=1, groups=maps.shape[1])
    maps = F.conv2d(maps, state['map.point.weight'], state['map.point.bias'])
    tokens = maps.flatten(2).transpose(1, 2)
    return torch.cat([linear(x[:, :1], state, 'token'), tokens], 1), (maps.shape[2], maps.shape[3])
