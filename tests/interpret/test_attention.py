"""Distance, entropy, maps, rollout, pooling weights and temperatures, against attention made by hand."""
import math
from typing import Any

import pytest
import timm
import torch
from interpret_cases import SMALL, batch, create
from torch import Tensor

from tinyvit_zoo import ZooError
from tinyvit_zoo.interpret.analyses import unsupported
from tinyvit_zoo.interpret.attention import (
    attention_layers,
    attention_maps,
    distance_and_entropy,
    distances,
    layer_logits,
    patch_attention,
    pooling_weights,
    reach,
    readout,
    roll_out,
    temperatures,
    watch_attention,
)


# -- what enters each softmax ------------------------------------------------------------------------------------------
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


# -- distance and entropy ----------------------------------------------------------------------------------------------
def test_distances_are_in_pixels_between_the_tokens() -> None:
    apart = distances((2, 3), (8., 2.))
    expected = [[math.hypot(8 * (a // 3 - b // 3), 2 * (a % 3 - b % 3)) for b in range(6)] for a in range(6)]
    torch.testing.assert_close(apart, torch.tensor(expected))


def test_known_attention_has_known_distance_and_entropy() -> None:
    """To oneself: 0 and 0. To all alike: the mean distance, ln N. To the neighbour on the right: its distance, 0."""
    apart, eye = distances((1, 4), (5., 5.)), torch.eye(4)
    right = eye.roll(1, 1)
    attention = torch.stack([eye, torch.full((4, 4), 0.25), right])[None]
    torch.testing.assert_close(distance_and_entropy(attention, apart), torch.tensor([
        [[0., 5 * 1.25, 5 * 1.5]], [[0., math.log(4), 0.]]]))


def test_prefix_tokens_are_left_out_before_the_softmax() -> None:
    """However much the class token draws, the patches' shares among themselves are what they are without it."""
    logits = torch.randn(2, 3, 5, 5)
    logits[..., 0] += 50
    found = patch_attention(logits, 1)
    torch.testing.assert_close(found, logits[..., 1:, 1:].softmax(-1))
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, 4))


def test_uniform_attention_keeps_to_what_is_not_masked() -> None:
    logits = torch.randn(1, 1, 4, 4)
    logits[..., 1, 2:] = -torch.inf
    logits.diagonal(dim1=2, dim2=3).fill_(-1e38)
    found = patch_attention(logits, 0, uniform=True)[0, 0]
    third = 1 / 3
    torch.testing.assert_close(found[:2], torch.tensor([[0, third, third, third], [1., 0, 0, 0]]))


@torch.no_grad()
def test_a_model_made_to_look_at_known_places() -> None:
    """Relative biases that leave one offset alone: each head of each layer reaches as far as its offset."""
    model = create('mae_lite_vit_tiny_rpe')
    for block in model.blocks:
        block.attn.qkv.weight.zero_()
        block.attn.qkv.bias.zero_()
        table = block.rel_pos.relative_position_bias_table.zero_()  # offsets of a 3 x 4 grid: 5 x 7, then the class's
        assert len(table) == 5 * 7 + 3
        table[2 * 7 + 3, 0] = 1e4     # head 0: to itself
    found = reach(model, [batch(3), batch(1)])
    for layer in range(2):
        torch.testing.assert_close(found.distance[layer][0].item(), 0., atol=1e-6, rtol=0)
        torch.testing.assert_close(found.entropy[layer][0].item(), 0., atol=1e-6, rtol=0)
        expected = distances((3, 4), (4., 4.)).mean().item()
        torch.testing.assert_close(found.distance[layer][1:].mean().item(), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.entropy[layer][5].item(), math.log(12), atol=1e-6, rtol=0)
        torch.testing.assert_close(found.uniform_distance[layer], expected, atol=1e-5, rtol=0)
        assert found.uniform_entropy[layer] == pytest.approx(math.log(12))


@torch.no_grad()
def test_the_reach_of_a_model_is_the_mean_over_images_whatever_the_batches() -> None:
    model, x = create('sl_pit'), batch(5)
    whole, parts = reach(model, [x]), reach(model, [x[:3], x[3:]])
    assert [len(heads) for heads in whole.distance] == [2, 4, 8]
    assert [layer.stride for layer in whole.layers] == [(2, 2), (4, 4), (8, 8)]
    for a, b in ((whole.distance, parts.distance), (whole.entropy, parts.entropy)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert whole.uniform_entropy[0] == pytest.approx(math.log(6 * 8 - 1))  # of locality attention: all but oneself


# -- maps --------------------------------------------------------------------------------------------------------------
def test_rollout_of_known_attention() -> None:
    """Two layers that hand on by one token: half stays, half moves, twice."""
    move = torch.eye(4).roll(1, 1)[None]      # token i looks at token i + 1
    found = roll_out([move, move])
    torch.testing.assert_close(found[0, 0], torch.tensor([0.25, 0.5, 0.25, 0.]))
    first, second = torch.rand(2, 1, 3, 3).softmax(-1)
    half = [(a + torch.eye(3)) / 2 for a in (first, second)]
    torch.testing.assert_close(roll_out([first, second]), half[1] @ half[0])


@torch.no_grad()
def test_maps_show_the_rows_that_the_query_has() -> None:
    model, x = create('vit_lite_2_4'), batch()
    layers, logits = attention_layers(model), {}
    with watch_attention(layers, logits.__setitem__):
        model.forward_features(x)
    of_class, of_patch = attention_maps(model, x), attention_maps(model, x, layer=0, patch=(1, 2))
    torch.testing.assert_close(of_class.heads.flatten(2), logits[1].softmax(-1)[:, :, 0, 1:])
    torch.testing.assert_close(of_patch.heads.flatten(2), logits[0].softmax(-1)[:, :, 1 + 1 * 4 + 2, 1:])
    halves = [(logits[i].softmax(-1).mean(1) + torch.eye(13)) / 2 for i in range(2)]
    torch.testing.assert_close(of_class.rollout.flatten(1), (halves[1] @ halves[0])[:, 0, 1:])
    assert of_class.query == 'the class token' and of_patch.query == 'patch 1, 2'
    for patch in ((3, 0), (0, 4)):
        with pytest.raises(ZooError, match='3 x 4 patches'):
            attention_maps(model, x, patch=patch)
    with pytest.raises(ZooError, match='There is no layer 2: the model has 2'):
        attention_maps(model, x, layer=2)


@torch.no_grad()
def test_what_is_read_out_and_what_has_no_rollout() -> None:
    tokens = torch.randn(2, 12, 128, dtype=torch.float64)
    pooled = create('cvt_2_4')
    weights = readout(pooled, tokens)
    torch.testing.assert_close((weights[:, None] @ tokens)[:, 0], pooled.attn_pool(tokens))
    mean = create('mae_lite_vit_tiny_rpe')     # its classifier sees the mean without the class token
    features = mean.forward_features(batch())
    read = mean.fc_norm((readout(mean, features)[:, None] @ features)[:, 0])
    torch.testing.assert_close(read, mean.forward_head(features, pre_logits=True))
    assert attention_maps(pooled, batch()).rollout.sum(dim=(1, 2)) == pytest.approx(1.)
    for name in ('sl_pit', 'plain_swin', 'ssl_cait', 'sl_cait'):
        model = create(name)
        assert attention_maps(model, batch()).rollout is None and unsupported(model)['rollout']
    assert attention_maps(create('ssl_cait'), batch()).query == 'the class token'
    with pytest.raises(ZooError, match='the class token alone'):
        attention_maps(create('sl_cait'), batch(), patch=(0, 0))


@torch.no_grad()
def test_pooling_weights_are_the_model_s_own() -> None:
    for name, options, prefix in (('cct_2_3x2', {}, 0), ('sl_vit', {'global_pool': 'seq'}, 1),
                                  ('ssl_swin', {'global_pool': 'seq', 'img_size': 32}, 0)):
        model = create(name, **options)
        x = batch() if name != 'ssl_swin' else torch.randn(2, 3, 32, 32, dtype=torch.float64)
        found = pooling_weights(model, x)
        assert found.prefix.shape == (2, prefix)
        weights = torch.cat([found.prefix, found.maps.flatten(1)], 1).double()
        features = model.forward_features(x).reshape(2, weights.shape[1], -1)
        torch.testing.assert_close(
            model.head((weights[:, None] @ features)[:, 0]), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ZooError, match="read out by 'token'"):
        pooling_weights(create('sl_vit'), batch())


# -- temperatures ------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_temperatures_are_over_their_start() -> None:
    for name in ('sl_vit', 'sl_cait', 'sl_pit', 'sl_swin', 'sl_t2t'):
        model = timm.create_model(name, img_size=(12, 16), **SMALL[name])
        for values in temperatures(model).values():
            torch.testing.assert_close(values, torch.ones(len(values)))
    model.blocks[1].attn.temperature[2] *= 3
    found = temperatures(model)
    assert list(found) == ['tokenizer.steps.0', 'blocks.0', 'blocks.1']
    torch.testing.assert_close(found['blocks.1'], torch.tensor([1., 1., 3., 1.]))
    with pytest.raises(ZooError, match='no locality attention'):
        temperatures(create('plain_vit'))
