"""Where the blocks of a model are: what enters each softmax, and what leaves each block."""
from typing import Any

import pytest
import torch
from interpret_cases import SMALL, batch, create
from torch import Tensor

from tinyvit_zoo.interpret.places import attention_layers, feature_names, layer_logits, see_features, watch_attention


@pytest.mark.parametrize('name', SMALL)
@torch.no_grad()
def test_the_logits_are_those_that_each_attention_uses(name: str) -> None:
    """softmax(logits), mixed where heads are mixed, times the values is what the module gave out."""
    model, given = create(name), {}
    layers = attention_layers(model)
    handles = [layer.attention.register_forward_hook(
        lambda m, args, kwargs, out: given.update({m: (args, out)}), with_kwargs=True) for layer in layers]
    logits: dict[int, Tensor] = {}
    with watch_attention(layers, logits.__setitem__):
        features = model.forward_features(batch())
    for handle in handles:
        handle.remove()
    assert torch.isfinite(features).all() and len(logits) == len(layers)
    for index, layer in enumerate(layers):
        args, out = given[layer.attention]
        rows, cols = layer.grid
        assert logits[index].shape[3] - rows * cols in (0, layer.prefix)
        expected = attended(layer.attention, logits[index].softmax(-1), *args)
        torch.testing.assert_close(expected, out.reshape(expected.shape), rtol=1e-6, atol=1e-8)


def attended(attn: Any, weights: Tensor, x: Tensor, context: Any = None) -> Tensor:
    """What attention weights [B, H, N, M] give, by the module's values and projection."""
    for mix in ('mix_post', 'proj_w'):
        if hasattr(attn, mix):
            mixing = getattr(attn, mix)
            bias = 0 if mix == 'mix_post' else mixing.bias[:, None, None]
            weight = mixing.t() if mix == 'mix_post' else mixing.weight
            weights = torch.einsum('gh,bhnm->bgnm', weight, weights) + bias
    tokens = (x if context is None else context).flatten(1, -2)
    if hasattr(attn, 'qkv'):
        values = attn.qkv(tokens).chunk(3, dim=2)[2]
    else:
        values = attn.kv(tokens).chunk(2, dim=2)[1] if hasattr(attn, 'kv') else attn.v(tokens)
    v = values.unflatten(2, (weights.shape[1], -1)).transpose(1, 2)
    out = attn.proj((weights @ v).transpose(1, 2).flatten(2))
    return values + out if type(attn).__name__ == 'TokenAttention' else out


@torch.no_grad()
def test_windows_keep_to_themselves() -> None:
    """8 x 8 tokens in windows of 4: shifted ones see what lies together, and what the shift wrapped is apart."""
    model = create('sl_swin', img_size=16)
    plain, shifted = model.layers[0].blocks
    x = torch.randn(1, 8, 8, 96, dtype=torch.float64)
    seen = [(layer_logits(block.attn, x).softmax(-1) > 0)[0, 0] for block in (plain, shifted)]
    row, col = torch.arange(64) // 8, torch.arange(64) % 8
    for shift, found in zip((0, 2), seen, strict=True):
        zone = (row + shift) // 4 * 3 + (col + shift) // 4
        expected = (zone[:, None] == zone) & ~torch.eye(64, dtype=torch.bool)
        assert torch.equal(found, expected)


@pytest.mark.parametrize('name', SMALL)
@torch.no_grad()
def test_features_are_the_patch_tokens_behind_each_block(name: str) -> None:
    model, x = create(name), batch()
    found: dict[int, Tensor] = {}
    see_features(model, x, found.__setitem__)
    names = feature_names(model)
    layers = [layer for layer in attention_layers(model) if not layer.class_only]
    assert len(found) == len(names) == len(layers)
    for index, layer in enumerate(layers):
        assert found[index].flatten(1, -2).shape[1] == layer.grid[0] * layer.grid[1]
    if name in ('vit_lite_2_4', 'cct_2_3x2', 'sl_vit', 'vit_tiny_patch16_224', 'deit_tiny_distilled_patch16_224'):
        for index, expected in enumerate(model.forward_intermediates(x, indices=2, intermediates_only=True)):
            torch.testing.assert_close(found[index], expected.flatten(2).transpose(1, 2))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
