"""The analyses, against attention and features made by hand whose answers are known."""
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.cli.analyze import reasons
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.interpret.attention import (
    attention_maps,
    distances,
    mean_distance,
    mean_entropy,
    patch_attention,
    pooling_weights,
    reach,
    readout,
    roll_out,
    uniform_attention,
)
from tinyvit_zoo.interpret.places import attention_layers, feature_names, layer_logits, see_features, watch_attention
from tinyvit_zoo.interpret.plots import plot_reach
from tinyvit_zoo.interpret.similarity import gram, ratio, similarity, unbiased_hsic
from tinyvit_zoo.interpret.tables import position_similarity, temperatures
from tinyvit_zoo.models import list_models
from tinyvit_zoo.weights import save_weights

SMALL: dict[str, dict[str, Any]] = {  # every family, on 12 x 16 pixels and 3 x 4 patches where it has them
    'vit_lite_2_4': {}, 'cvt_2_4': {}, 'cct_2_3x2': {}, 'sl_vit': dict(depth=2), 'plain_vit': dict(depth=2),
    'sl_t2t': dict(depth=2), 'sl_pit': dict(depths=(1, 1, 1)), 'plain_pit': dict(depths=(1, 1, 1)),
    'sl_swin': dict(depths=(2, 1, 1)), 'plain_swin': dict(depths=(2, 1, 1)), 'ssl_swin': dict(depths=(2, 1, 1)),
    'sl_cait': dict(depth=2), 'plain_cait': dict(depth=2), 'ssl_cait': dict(depth=2), 'ssl_vit': dict(depth=2),
    'mae_vit_c10': dict(depth=2, patch_size=4), 'mae_lite_vit_tiny_rpe': dict(depth=2, patch_size=4),
    'vit_tiny_patch16_224': dict(depth=2, patch_size=4), 'cait_xxs24_224': dict(depth=2, patch_size=4),
    'deit_tiny_distilled_patch16_224': dict(depth=2, patch_size=4),
}


def create(name: str, **kwargs: Any) -> Any:
    model = timm.create_model(name, **{'img_size': (12, 16), **SMALL[name], **kwargs}).double().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():  # as trained ones: no two heads alike, logits of some size
            if key.endswith(('temperature', 'bias_table', 'cls_token', 'pos_embed', 'proj_l.bias')):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def batch(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 12, 16, dtype=torch.float64)


# -- reading -----------------------------------------------------------------------------------------------------------
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
    torch.testing.assert_close(mean_distance(attention, apart), torch.tensor([[0., 5 * 1.25, 5 * 1.5]]))
    torch.testing.assert_close(mean_entropy(attention), torch.tensor([[0., math.log(4), 0.]]))


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
    found = uniform_attention(logits, 0)[0, 0]
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
        assert attention_maps(model, batch()).rollout is None and reasons(model)['rollout']
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


# -- similarity --------------------------------------------------------------------------------------------------------
def hsic_by_definition(x: Tensor, y: Tensor) -> float:
    """The U-statistic: the mean over all four different images of the products that measure dependence."""
    k, h = x @ x.t(), y @ y.t()
    n, total, count = len(x), 0., 0
    for i in range(n):
        for j in set(range(n)) - {i}:
            for q in set(range(n)) - {i, j}:
                for r in set(range(n)) - {i, j, q}:
                    total += float(k[i, j] * (h[i, j] + h[q, r] - 2 * h[i, q]))
                    count += 1
    return total / count


def test_hsic_is_the_unbiased_estimate() -> None:
    x, y = torch.randn(6, 3).double() + 4, torch.randn(6, 5).double() - 2
    found = unbiased_hsic(torch.stack([gram(x), gram(y)]), torch.stack([gram(x), gram(y)]))
    expected = torch.tensor([[hsic_by_definition(a, b) for b in (x, y)] for a in (x, y)])
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ZooError, match='3 images, expected 4 or more'):
        unbiased_hsic(gram(x[:3])[None], gram(x[:3])[None])


class Features(nn.Module):
    """Three layers of features: as they come, turned and scaled, and of another draw."""

    def __init__(self, collapsed: bool = False) -> None:
        super().__init__()
        self.turn = torch.linalg.qr(torch.randn(8, 8))[0]
        self.collapsed = collapsed

    def forward_intermediates(self, x: Tensor, intermediates_only: bool) -> list[Tensor]:
        last = torch.full((len(x), 4), 7.3) if self.collapsed else x[:, 8:]
        return [x[:, :8], 3 * x[:, :8] @ self.turn + 5, last]


def test_cka_of_features_that_are_turned_scaled_and_unrelated() -> None:
    x = torch.randn(20, 64, 16)
    found = similarity(Features(), x)['aa']
    torch.testing.assert_close(found.diagonal(), torch.ones(3).double())
    assert found[0, 1] == pytest.approx(1, abs=1e-5) and abs(found[0, 2]) < 0.02  # a biased estimate has 0.11
    shared = torch.cat([x[..., :8], x[..., :4], x[..., 8:12]], 2)  # half of the last layer's features are the first's
    assert similarity(Features(), shared)['aa'][0, 2] == pytest.approx(0.5, abs=0.05)
    both = similarity(Features(), x, Features(), x)
    assert both['ab'].shape == (3, 3) and both['ab'][0, 0] == pytest.approx(1, abs=1e-5)


def test_hsic_is_averaged_before_the_ratio() -> None:
    x = torch.randn(2, 8, 16)
    x[1] *= 10
    model = Features()
    sums = 0.
    for part in x:
        grams = torch.stack([gram(f) for f in model.forward_intermediates(part, True)])
        sums = sums + unbiased_hsic(grams, grams)
    expected = sums / (sums.diagonal()[:, None] * sums.diagonal()).sqrt()
    torch.testing.assert_close(similarity(model, x)['aa'], expected)


def test_no_similarity_is_nan() -> None:
    """Collapsed features, and a self-similarity that chance made negative, are like nothing: 0."""
    found = similarity(Features(collapsed=True), torch.randn(2, 8, 16))['aa']
    assert torch.isfinite(found).all() and not found[2].any() and not found[:, 2].any()
    cross = torch.tensor([[0.5, -0.1], [0.2, -0.3]])
    torch.testing.assert_close(
        ratio(cross, torch.tensor([4., -1.]), torch.tensor([1., 0.25])), torch.tensor([[0.25, -0.1], [0., 0.]]))


@torch.no_grad()
def test_layers_of_two_models_are_compared_on_the_same_images() -> None:
    a, b = create('vit_lite_2_4'), create('sl_swin')
    x = [batch(8), batch(8)]
    found = similarity(a, x, b, x)
    assert found['aa'].shape == (2, 2) and found['ab'].shape == (2, 4) and found['bb'].shape == (4, 4)
    swapped = similarity(b, x, a, x)
    torch.testing.assert_close(swapped['ab'], found['ab'].t())
    shuffled = similarity(a, x, b, [part.flip(0) for part in x])
    assert shuffled['ab'].mean() < found['ab'].mean()
    assert feature_names(timm.create_model('resnet18')) == ['act1', 'layer1', 'layer2', 'layer3', 'layer4']


# -- parameters --------------------------------------------------------------------------------------------------------
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


@torch.no_grad()
def test_positions_alike_are_found_alike() -> None:
    for name in ('vit_lite_2_4', 'cvt_2_4', 'mae_vit_c10', 'ssl_cait', 'sl_t2t'):
        model = create(name)
        rows, cols = attention_layers(model)[-1].grid
        table = torch.zeros(1, *model.pos_embed.shape[1:])
        for i in range(rows * cols):
            table[0, i - rows * cols, i % cols] = i + 1.   # a direction for each column
        model.pos_embed.data = table
        found = position_similarity(model)
        same = torch.eye(cols)[None, :, None].expand(rows, cols, rows, cols)
        torch.testing.assert_close(found, same)
    with pytest.raises(ZooError, match='nothing is added'):
        position_similarity(create('ssl_swin'))


# -- what is defined for which model -----------------------------------------------------------------------------------
def test_every_model_says_what_it_can_have() -> None:
    found = {name: {kind for kind, why in reasons(timm.create_model(name, device='meta')).items() if not why}
             for name in list_models()}
    always = {'attention', 'maps', 'similarity'}
    for name, kinds in found.items():
        assert always <= kinds, name
        assert ('rollout' in kinds) == (name.split('_')[1] not in ('cait', 'pit', 'swin')), name
        assert ('pooling' in kinds) == name.startswith(('cct', 'cvt')), name
        assert ('temperatures' in kinds) == name.startswith('sl_'), name
        assert ('positions' in kinds) == (not name.startswith('ssl_swin')), name
    convnet = reasons(timm.create_model('resnet18', device='meta'))
    assert not convnet['similarity'] and all(convnet[kind] for kind in convnet.keys() - {'similarity'})


# -- the command -------------------------------------------------------------------------------------------------------
@pytest.fixture
def weights(tmp_path: Path) -> str:
    """`NAME=FILE` of a model for digits."""
    model = timm.create_model('cct_2_3x2', img_size=16)
    cfg = '{"num_classes": 10, "input_size": [3, 16, 16], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'
    with torch.no_grad():
        model.pos_embed.mul_(2)
    save_weights(model.state_dict(), tmp_path / 'w.safetensors', {'pretrained_cfg': cfg})
    return f'cct_2_3x2={tmp_path / "w.safetensors"}'


def analyze(folder: Path, *args: str) -> dict[str, dict[str, np.ndarray]]:
    """Runs it; what the .npz files hold, by name."""
    assert main(['analyze', *args, '--output', str(folder / 'out'), '--device', 'cpu']) == 0
    assert all(path.stat().st_size > 2000 for path in (folder / 'out').glob('*.png'))
    assert list((folder / 'out').glob('*.png')), 'no picture'
    return {path.stem: dict(np.load(path)) for path in (folder / 'out').glob('*.npz')}


def test_attention_and_pooling_of_digits(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ('--data', 'digits', '--images', '20')
    reached, = analyze(tmp_path, 'attention', weights, *data).values()
    assert reached['distance'].shape == (2, 2) and 0 < reached['entropy'].min() <= math.log(16) + 1e-6
    assert reached['uniform_entropy'] == pytest.approx([math.log(16)] * 2) and reached['images'] == 20
    assert 'blocks.1' in capsys.readouterr().out
    pooled = analyze(tmp_path, 'pooling', weights, *data)
    found = next(arrays for name, arrays in pooled.items() if name.startswith('pooling'))
    assert found['maps'].shape == (20, 4, 4) and found['maps'].sum((1, 2)) == pytest.approx(1, abs=1e-5)


def test_similarity_and_positions_of_two_models(weights: str, tmp_path: Path) -> None:
    data = ('--data', 'digits', '--images', '21', '--batch-size', '8')
    found, = analyze(tmp_path, 'similarity', weights, *data).values()
    assert found['images'] == 16 and found['batch'] == 8
    assert np.diag(found['aa']) == pytest.approx([1, 1], abs=1e-6)
    again, = analyze(tmp_path / 'b', 'similarity', weights, *data).values()
    assert np.array_equal(found['aa'], again['aa'])
    positions = analyze(tmp_path / 'c', 'positions', weights)
    assert next(iter(positions.values()))['similarity'].shape == (4, 4, 4, 4)


def test_maps_of_files_and_temperatures(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image
    for i in range(2):
        Image.fromarray(np.full((30, 20, 3), 90 * i, np.uint8)).save(tmp_path / f'{i}.png')
    found, = analyze(tmp_path, 'maps', weights, '--files', str(tmp_path), '--layer', '0', '--query', '3,1').values()
    assert found['heads'].shape == (2, 2, 4, 4) and found['rollout'].shape == (2, 4, 4)
    assert {Path(name).name for name in found['names']} == {'0.png', '1.png'}
    heated = analyze(tmp_path / 'b', 'temperatures', 'sl_pit.untrained')
    values = next(iter(heated.values()))['temperature']
    assert values.shape == (12, 8) and np.nanmax(abs(values - 1)) < 1e-6 and np.isnan(values[0, 2:]).all()
    assert main(['analyze', 'support', 'sl_pit', 'resnet18']) == 0
    assert 'its tokens are merged between the stages' in capsys.readouterr().out
    assert main(['analyze', 'support', 'sl_pit', 'nope']) == 2
    assert "'nope'" in capsys.readouterr().err


@pytest.mark.parametrize('args, words', [
    (['temperatures', 'cct_2_3x2.untrained'], 'has no temperatures: it has no locality attention'),
    (['pooling', 'sl_vit.untrained', '--data', 'digits'], "has no pooling weights: it is read out by 'token'"),
    (['positions', 'ssl_swin.untrained'], 'has no table of positions'),
    (['attention', 'resnet18.untrained', '--data', 'digits'], 'its blocks are not known'),
    (['attention', 'cct_2_3x2.untrained'], 'Give --data SOURCE'),
    (['attention', 'cct_2_3y2', '--data', 'digits'], 'Did you mean'),
    (['attention', 'sl_vit', '--data', 'digits'], 'There are no weights of sl_vit: give sl_vit=FILE, or sl_vit.un'),
    (['attention', 'sl_vit=none.pth', '--data', 'digits'], 'There is no weights file none.pth'),
    (['attention', 'sl_vit', 'sl_vit', '--data', 'digits'], 'given twice'),
    (['maps', 'sl_vit.untrained', '--data', 'digits', '--query', '3'], 'expected ROW,COL'),
    (['maps', 'sl_vit.untrained', '--data', 'digits', '--images', '0'], '--images is 0'),
    (['maps', 'sl_vit.untrained', '--files', 'nowhere.png'], 'There is no image or folder'),
    (['similarity', 'sl_vit', 'sl_pit', 'sl_t2t', '--data', 'digits'], 'expected one or two'),
    (['similarity', 'sl_vit.untrained', '--data', 'digits', '--images', '3'], 'expected 4 or more'),
    (['similarity', 'sl_vit.untrained', '--data', 'digits', '--split', 'val'], 'has no val images'),
    (['temperatures', 'sl_vit.untrained', '--device', 'cuda:77'], "Device 'cuda:77' cannot be used"),
])
def test_what_cannot_be_done_is_one_line(
        args: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['analyze', *args, '--output', str(tmp_path / 'out')]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1 and not (tmp_path / 'out').exists()


def test_a_missing_matplotlib_is_said_before_anything(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib', None)
    assert main(['analyze', 'positions', 'cct_2_3x2.untrained', '--output', str(tmp_path / 'out')]) == 2
    assert "pip install 'tinyvit-zoo[analysis]'" in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_boxes_show_the_numbers() -> None:
    model = create('sl_pit')
    found = reach(model, [batch()])
    figure = plot_reach({'a': found, 'b': found})
    dots = [line.get_ydata() for axes in figure.axes[:2] for line in axes.lines if line.get_label() == 'a head']
    for drawn, values in zip(dots, (found.distance, found.entropy), strict=True):
        np.testing.assert_allclose(drawn, torch.cat(values))
