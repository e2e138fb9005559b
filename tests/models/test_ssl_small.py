"""ssl_vit, ssl_swin and ssl_cait give the authors' numbers, and take views of any size and the authors' files."""
import argparse
import logging
from pathlib import Path
from typing import Any

import parity_ssl
import pytest
import timm
import torch
from parity import fill, images, load_fixtures
from parity_ssl import fill_all
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

import tinyvit_zoo
from tinyvit_zoo import ZooError
from tinyvit_zoo.kernels import window_attention
from tinyvit_zoo.layers import WindowAttention, position, table_on_grid, window_mask, windows
from tinyvit_zoo.measure import counting
from tinyvit_zoo.models.ssl_small import checkpoint_filter_fn
from tinyvit_zoo.weights import catalogue, fetch

KINDS = ['vit', 'swin', 'cait']
NAMES = [f'ssl_{kind}{size}' for kind in KINDS for size in ('', '_64')]
SHALLOW: dict[str, dict[str, Any]] = {
    'ssl_vit': dict(depth=2), 'ssl_swin': dict(depths=(1, 2, 1)), 'ssl_cait': dict(depth=2, class_depth=1)}
SMALLEST: dict[str, dict[str, Any]] = {
    'ssl_vit': dict(depth=1), 'ssl_swin': dict(depths=(1, 1, 1)), 'ssl_cait': dict(depth=1, class_depth=1)}
SHAPES = {kind: getattr(parity_ssl, f'{kind}_shapes') for kind in KINDS}
FORWARD = {kind: getattr(parity_ssl, f'{kind}_forward') for kind in KINDS}


def kind_and_patch(name: str) -> tuple[str, int]:
    kind = name.split('_')[1]
    return kind, (2 if kind == 'swin' else 4) * (2 if name.endswith('_64') else 1)


def load(name: str, state: dict[str, Tensor], **kwargs: Any) -> nn.Module:
    model = timm.create_model(name, **kwargs).double().eval()
    model.load_state_dict(checkpoint_filter_fn(state, model))
    return model


# -- the numbers -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('case', load_fixtures('ssl_small'), ids=lambda case: case['name'])
@torch.no_grad()
def test_fixture(case: dict) -> None:
    """The authors' own numbers; the plain definitions in parity_ssl.py are held to them too."""
    kind = case['name'].split('_')[0]
    state = {key: fill(key, shape) for key, shape in case['state'].items()}
    name, (_, patch) = f'ssl_{kind}', kind_and_patch(f'ssl_{kind}')
    assert SHAPES[kind]((32, 32), 3, 10, patch) == case['state']
    expected = torch.tensor(case['logits'], dtype=torch.float64)
    model = load(name, state)
    x = images(case['input'], case['image_seed'])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == case['params']
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(FORWARD[kind](x, state, patch), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(model.float()(x.float()), expected.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size, img, chans, classes', [
    ('', (32, 32), 3, 100), ('_64', (64, 64), 3, 200), ('', (37, 22), 1, 0), ('', (28, 44), 4, 2),
    ('_64', (32, 75), 5, 10), ('_64', (16, 16), 3, 3)])
@torch.no_grad()
def test_sizes_channels_classes(
        kind: str, size: str, img: tuple[int, int], chans: int, classes: int) -> None:
    name = f'ssl_{kind}{size}'
    patch = kind_and_patch(name)[1]
    state = fill_all(SHAPES[kind](img, chans, classes, patch))
    model = load(name, state, img_size=img, in_chans=chans, num_classes=classes)
    x = images([2, chans, *img])
    torch.testing.assert_close(model(x), FORWARD[kind](x, state, patch), rtol=0, atol=1e-9)


@torch.no_grad()
def test_depths() -> None:
    x = images([2, 3, 32, 32])
    state = fill_all(parity_ssl.vit_shapes((32, 32), 3, 5, 4, depth=3))
    model = load('ssl_vit', state, num_classes=5, depth=3)
    torch.testing.assert_close(model(x), parity_ssl.vit_forward(x, state, 4), rtol=0, atol=1e-9)
    state = fill_all(parity_ssl.cait_shapes((32, 32), 3, 5, 4, depth=3, class_depth=1))
    model = load('ssl_cait', state, num_classes=5, depth=3, class_depth=1)
    torch.testing.assert_close(model(x), parity_ssl.cait_forward(x, state, 4), rtol=0, atol=1e-9)


@pytest.mark.parametrize('name, counts', [
    ('ssl_vit', (2_697_610, 2_714_980)), ('ssl_swin', (7_048_612, 7_083_262)), ('ssl_cait', (8_053_450, 8_070_820)),
    ('ssl_vit_64', (2_761_928,)), ('ssl_swin_64', (7_125_218,)), ('ssl_cait_64', (8_117_768,))])
def test_parameter_count(name: str, counts: tuple[int, ...]) -> None:
    for classes, count in zip((200,) if name.endswith('_64') else (10, 100), counts, strict=True):
        model = timm.create_model(name, num_classes=classes, device='meta')
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


PADDED = 12 * 4 * 4 * 384 ** 2 / 1e6  # the authors project 12 tokens of padding, in 4 blocks, to q, k, v and back


@pytest.mark.parametrize('name, full, local', [
    ('ssl_vit', 187.7, 46.3), ('ssl_swin', 241.0, 89.1 - PADDED), ('ssl_cait', 504.8, 119.2)])
def test_multiply_accumulates(name: str, full: float, local: float) -> None:
    """In millions, of a full and of a half-size view. Padding comes in where windows are cut."""
    model = timm.create_model(name, device='meta')
    for px, expected in ((32, full), (16, local)):
        assert counting.count(model, px).macs / 1e6 == pytest.approx(expected, abs=0.1)


# -- views of any size -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('scale', [(0.5, 0.5), (0.5, 1.25), (1.5, 1.75), (0.25, 0.25), (1.05, 1)])
@torch.no_grad()
def test_a_view_of_another_size_goes_straight_through(name: str, scale: tuple[float, float]) -> None:
    kind, patch = kind_and_patch(name)
    px = 64 if name.endswith('_64') else 32
    state = fill_all(SHAPES[kind]((px, px), 3, 10, patch))
    model = load(name, state, num_classes=10)
    x = images([2, 3, int(scale[0] * px), int(scale[1] * px)])
    expected = FORWARD[kind](x, state, patch, built=(px, px))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9 if kind == 'swin' else 1e-6)
    assert model.img_size == (px, px)


@pytest.mark.parametrize('name', SHALLOW)
@torch.no_grad()
def test_a_view_is_what_a_resized_model_sees(name: str) -> None:
    model = timm.create_model(name, **SHALLOW[name]).eval()
    x = torch.randn(2, 3, 16, 24)
    straight = model(x)
    maps = model.forward_intermediates(x, intermediates_only=True)
    model.set_input_size((16, 24))
    torch.testing.assert_close(model(x), straight)
    resized = model.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(maps, resized)
    built = timm.create_model(name, img_size=(16, 24), **SHALLOW[name]).eval()
    built.load_state_dict(model.state_dict())
    torch.testing.assert_close(built(x), straight)


@pytest.mark.parametrize('name', SHALLOW)
@torch.no_grad()
def test_a_full_view_is_unchanged_by_any_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a table is interpolated nor a map padded nor a token masked."""
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError('not at full size')

    model = timm.create_model(name, **SHALLOW[name]).eval()
    x = torch.randn(2, 3, 32, 32)
    assert model._positions(x) is model.pos_embed
    monkeypatch.setattr(position, 'resample_abs_pos_embed', fail)
    model(x)
    for side in (16, 8, 4):
        assert not window_mask(x, side, side, 4, 0, False).any()
        order, place = windows.window_order(x, side, side, 4, 0)
        assert sorted(order.tolist()) == sorted(place.tolist()) == list(range(side * side))


def test_gradients_reach_the_table_through_the_interpolation() -> None:
    for prefix in (0, 1):
        table = torch.randn(1, 48 + prefix, 5, requires_grad=True)
        theirs = resample_abs_pos_embed(table, [3, 4], [6, 8], num_prefix_tokens=prefix)
        ours = table_on_grid(table, (6, 8), (3, 4), prefix)
        torch.testing.assert_close(ours, theirs)
        wanted = torch.randn_like(ours)
        torch.testing.assert_close(
            torch.autograd.grad((ours * wanted).sum(), table), torch.autograd.grad((theirs * wanted).sum(), table))
    assert table_on_grid(table, (6, 8), (6, 8), 1) is table
    moved = table_on_grid(table, (6, 8), (8, 6), 1)  # as many tokens in another shape are other positions
    assert moved.shape == table.shape and not torch.allclose(moved, table)


@pytest.mark.parametrize('name', SHALLOW)
def test_global_and_local_views_train_together_in_bf16(name: str) -> None:
    model = timm.create_model(name, **SHALLOW[name])
    with torch.autocast('cpu', torch.bfloat16):
        loss = sum(model(torch.randn(2, 3, px, px)).float().square().mean() for px in (32, 16))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize('name, kwargs, least', [('ssl_vit', {}, 4), ('ssl_cait_64', {}, 8), ('ssl_swin', {}, 8)])
def test_too_small_a_view(name: str, kwargs: dict, least: int) -> None:
    model = timm.create_model(name, **kwargs)
    with pytest.raises(AssertionError, match=f'{least} pixels a side and more'):
        model(torch.zeros(1, 3, 32, least - 1))
    with pytest.raises(ZooError, match=f'at least {least} x {least}'):
        timm.create_model(name, img_size=(32, least - 1))
    with pytest.raises(ZooError, match=f'at least {least} x {least}'):
        model.set_input_size(least - 1)


# -- padding -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('height, width', [(2, 2), (3, 5), (1, 4)])
def test_no_token_attends_to_padding(height: int, width: int) -> None:
    """The softmax gives padding a weight of exactly zero, and the other tokens weights that add up to one."""
    mask = window_mask(torch.zeros(1, dtype=torch.float64), height, width, 4, 0, False)
    padding = windows._regions(height, width, 4, 0, torch.device('cpu')) == 4
    logits = torch.randn(len(mask), 16, 16, dtype=torch.float64) * 10
    logits = logits.masked_fill(padding[:, None, :], 50.)  # padding would win by far
    weights = (logits + mask).softmax(-1)
    real = (~padding)[:, :, None]
    assert padding.any() and (~padding).sum() == height * width
    assert (weights.masked_fill(~(real & padding[:, None, :]), 0) == 0).all()
    sums = weights.masked_fill(padding[:, None, :], 0).sum(-1)
    torch.testing.assert_close(sums[~padding], torch.ones_like(sums[~padding]))


@pytest.mark.parametrize('fused', [True, False])
@torch.no_grad()
def test_what_fills_up_a_window_is_never_seen(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stage of a half-size view is 2x2 in a window of 4x4: it may be filled up with anything."""
    model = timm.create_model('ssl_swin').eval()
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.fused_attn = fused
            nn.init.normal_(module.relative_position_bias_table)
    x = torch.randn(2, 3, 16, 16)
    expected, filled = model(x), []

    def order(x: Tensor, height: int, width: int, window: int, shift: int) -> tuple[Tensor, Tensor]:
        """The padding is another token, where the plain formulas take any."""
        order, place = given_order(x, height, width, window, shift)
        if len(order) > len(place):
            filled.append((height, width))
            order = order.clone().index_fill_(0, padding_of(order, place), 1)
        return order, place

    def gather(x: Tensor, order: Tensor, place: Tensor, area: int) -> Tensor:
        """The padding is a number, where the operator takes zeros."""
        found = given_gather(x, order, place, area)
        if len(order) > len(place):
            padding = torch.zeros(len(order), dtype=torch.bool).index_fill_(0, padding_of(order, place), True)
            found = torch.where(padding.view(-1, area).repeat(len(x), 1)[None, :, None, :, None], 7., found)
        return found

    given_order, given_gather = windows.window_order, window_attention._gather
    monkeypatch.setattr(windows, 'window_order', order)
    monkeypatch.setattr(window_attention, '_gather', gather)
    torch.testing.assert_close(model(x), expected)
    assert filled == [(2, 2)] * 4  # the blocks of the last stage


def padding_of(order: Tensor, place: Tensor) -> Tensor:
    return torch.tensor([i for i in range(len(order)) if i not in place.tolist()])


# -- files -------------------------------------------------------------------------------------------------------------
def encoder_state(kind: str, seed: int = 0) -> dict[str, Tensor]:
    shapes = SHAPES[kind]((32, 32), 3, 0, kind_and_patch(f'ssl_{kind}')[1])
    return {name: fill(f'{name}{seed or ""}', shape).float() for name, shape in shapes.items()}


def distilled(kind: str, seed: int = 0) -> dict[str, Tensor]:
    """A network of the self-distillation: the backbone and its projection head."""
    sizes = {'mlp.0': (512, 192), 'mlp.2': (512, 512), 'mlp.4': (256, 512)}
    projection = {f'mlphead.{name}.weight': torch.ones(size) for name, size in sizes.items()}
    projection.update({'mlphead.last_layer.weight_g': torch.ones(1024, 1),
                       'mlphead.last_layer.weight_v': torch.ones(1024, 256)})
    return {**{f'backbone.{name}': tensor for name, tensor in encoder_state(kind, seed).items()}, **projection}


def checkpoint(kind: str) -> dict[str, Any]:
    """As the authors' training writes it."""
    student = {f'module.{name}': tensor for name, tensor in distilled(kind, seed=1).items()}
    return {'student': student, 'teacher': distilled(kind), 'epoch': 200, 'optimizer': {'state': {}},
            'args': argparse.Namespace(arch=kind, lr=1e-3), 'dino_loss': {'center': torch.zeros(1, 1024)}}


def from_file(name: str, path: Path, num_classes: int = 0, classes_in_it: int = 0) -> nn.Module:
    overlay = dict(file=str(path), num_classes=classes_in_it)
    return timm.create_model(name, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay).eval()


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_a_self_distillation_s_teacher_is_taken(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = checkpoint(kind)
    torch.save(content, tmp_path / 'w.pth')
    with caplog.at_level(logging.INFO):
        model = from_file(f'ssl_{kind}', tmp_path / 'w.pth')
    assert all(name in caplog.text for name in ('mlphead.mlp.0.weight', 'mlphead.last_layer.weight_v'))
    x = images([2, 3, 32, 32])
    patch = kind_and_patch(f'ssl_{kind}')[1]
    expected = FORWARD[kind](x, {k: v.double() for k, v in encoder_state(kind).items()}, patch)
    torch.testing.assert_close(model.double()(x), expected, rtol=0, atol=1e-5)
    content['teacher'] = {f'module.{name}': tensor for name, tensor in content['teacher'].items()}
    torch.save(content, tmp_path / 'w.pth')
    torch.testing.assert_close(from_file(f'ssl_{kind}', tmp_path / 'w.pth').double()(x), model(x))
    del content['teacher']
    torch.save(content, tmp_path / 'w.pth')
    student = FORWARD[kind](x, {k: v.double() for k, v in encoder_state(kind, seed=1).items()}, patch)
    torch.testing.assert_close(from_file(f'ssl_{kind}', tmp_path / 'w.pth').double()(x), student, rtol=0, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_an_encoder_for_other_classes_sizes_and_channels(kind: str, tmp_path: Path) -> None:
    """A new head, and every tensor else from the file."""
    torch.save(checkpoint(kind), tmp_path / 'w.pth')
    encoder, model = from_file(f'ssl_{kind}', tmp_path / 'w.pth'), from_file(f'ssl_{kind}', tmp_path / 'w.pth', 10)
    assert set(model.state_dict()) - set(encoder.state_dict()) == {'head.weight', 'head.bias'}
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)
    overlay = dict(file=str(tmp_path / 'w.pth'))
    grey = timm.create_model(
        f'ssl_{kind}', pretrained=True, num_classes=0, in_chans=1, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(x), encoder(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)
    large = timm.create_model(
        f'ssl_{kind}', pretrained=True, num_classes=7, img_size=(48, 40), pretrained_cfg_overlay=overlay).eval()
    encoder.set_input_size((48, 40))
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(large.state_dict()[name], tensor)


@torch.no_grad()
def test_a_download_with_a_namespace_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The namespace of options beside the tensors is inert."""
    monkeypatch.setattr(fetch, '_SCHEMES', ('file',))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    torch.save(checkpoint('vit'), tmp_path / 'there.pth')
    overlay = dict(url=(tmp_path / 'there.pth').as_uri())
    model = timm.create_model('ssl_vit', pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), from_file('ssl_vit', tmp_path / 'there.pth')(x))
    assert model.num_classes == 0 and model(x).shape == (2, 192)


@pytest.mark.parametrize('change, words', [
    (lambda t: t.pop('backbone.norm.bias'), 'norm.bias is missing'),
    (lambda t: t.update({'backbone.extra': torch.zeros(2)}), 'extra is not part of it'),
    (lambda t: t.update({'norm.weight': torch.zeros(192)}), 'also holds norm.weight'),
    (lambda t: t.update({'head.mlp.0.weight': torch.zeros(2)}), 'also holds head.mlp.0.weight'),
    (lambda t: t.update({'backbone.norm.weight': torch.ones(5)}), r'norm.weight is \[5\], expected \[192\]'),
    (lambda t: t.update({'backbone.head.weight': torch.ones(10, 192)}), 'head.weight is not part of it'),
])
def test_what_does_not_belong_is_named(change: Any, words: str, tmp_path: Path) -> None:
    content = checkpoint('vit')
    change(content['teacher'])
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(ZooError, match=words) as error:
        from_file('ssl_vit', tmp_path / 'w.pth')
    assert r'\n' not in str(error.value)


def test_a_wrong_model_or_class_count_is_named(tmp_path: Path) -> None:
    torch.save(checkpoint('vit'), tmp_path / 'w.pth')
    for name in ('ssl_cait', 'ssl_swin', 'ssl_vit_64'):
        with pytest.raises(ZooError, match=f'do not fit {name}: '):
            from_file(name, tmp_path / 'w.pth')
    with pytest.raises(ZooError, match=r'head.weight is missing.*0 for an encoder'):
        from_file('ssl_vit', tmp_path / 'w.pth', 10, 10)
    torch.save({'teacher': {'mlphead.mlp.0.weight': torch.ones(3, 3)}}, tmp_path / 'w.pth')
    with pytest.raises(ZooError, match='is missing'):
        from_file('ssl_vit', tmp_path / 'w.pth')


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_a_fine_tuned_file(kind: str, tmp_path: Path) -> None:
    patch = kind_and_patch(f'ssl_{kind}')[1]
    state = fill_all(SHAPES[kind]((32, 32), 3, 100, patch))
    torch.save({'model': {f'module.{k}': v.float() for k, v in state.items()}}, tmp_path / 'w.pth')
    model = from_file(f'ssl_{kind}', tmp_path / 'w.pth', 100, 100)
    x = images([2, 3, 32, 32])
    torch.testing.assert_close(model.double()(x), FORWARD[kind](x, state, patch), rtol=0, atol=1e-5)


def test_the_authors_files_are_tags_of_encoders() -> None:
    found = [w for w in catalogue().values() if 'hananshafi' in w.origin]
    assert len(found) == 15 and len({w.url for w in found}) == 15
    for weight in found:
        cfg = timm.get_pretrained_cfg(weight.name)
        assert (cfg.num_classes, cfg.label_names, cfg.license) == (0, None, 'unknown')
        kind, patch = kind_and_patch(weight.architecture)
        assert weight.url.endswith(f'patch{patch}_input{weight.input_size[1]}.pth') and f'/{kind}_' in weight.url
        assert weight.encoder and weight.published is None and weight.measured is None
    assert timm.get_pretrained_cfg('ssl_swin_64').tag == 'hananshafi_timnet_selfdistill'


@pytest.mark.parametrize('name', NAMES)
def test_without_weights_it_is_a_classifier(name: str) -> None:
    model = timm.create_model(name, device='meta')
    assert model.num_classes == model.pretrained_cfg['num_classes'] == (200 if name.endswith('_64') else 10)
    assert model.pretrained_cfg['tag'] == 'untrained' and model.pretrained_cfg['license'] == 'apache-2.0'


# -- the rest ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', NAMES)
def test_initialisation_is_the_authors(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, depth=4) if 'swin' not in name else timm.create_model(name)
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.numel() > 20_000]
    assert len(linears) > 8 and all(m.weight.std().item() == pytest.approx(0.02, rel=0.05) for m in linears)
    assert not any(m.bias.any() for m in linears if m.bias is not None)
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    for table in (model.pos_embed, model.cls_token):
        assert table is None or table.std().item() == pytest.approx(0.02, rel=0.2)
    gammas = [p for name, p in model.named_parameters() if 'gamma' in name]
    assert ('cait' in name) == bool(gammas) and all((p == 1e-5).all() for p in gammas)


def test_drop_path_is_the_authors() -> None:
    def rates(blocks: Any) -> list[float]:
        return [getattr(getattr(b, 'drop_path1', None) or b.drop_path, 'drop_prob', 0.) for b in blocks]

    assert rates(timm.create_model('ssl_vit').blocks) == pytest.approx([0.1 * i / 8 for i in range(9)])
    swin = timm.create_model('ssl_swin')
    assert rates(b for stage in swin.layers for b in stage.blocks) == pytest.approx([0.1 * i / 11 for i in range(12)])
    cait = timm.create_model('ssl_cait')
    assert rates(cait.blocks) == [0.1] * 24 and rates(cait.class_blocks) == [0., 0.]


def test_what_is_not_decayed() -> None:
    assert timm.create_model('ssl_vit', depth=1).no_weight_decay() == {'pos_embed', 'cls_token'}
    cait = timm.create_model('ssl_cait', depth=1, class_depth=1)
    assert cait.no_weight_decay() == {'pos_embed', 'cls_token', *(
        f'{block}.0.gamma_{i}' for block in ('blocks', 'class_blocks') for i in (1, 2))}
    tables = timm.create_model('ssl_swin', depths=(1, 1, 1)).no_weight_decay()
    assert tables == {f'layers.{i}.blocks.0.attn.relative_position_bias_table' for i in range(3)}


@pytest.mark.parametrize('name', SHALLOW)
def test_weights_can_be_initialised_after_to_empty(name: str) -> None:
    model = timm.create_model(name, device='meta', **SHALLOW[name]).to_empty(device='cpu')
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    model.init_weights()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@torch.no_grad()
def test_cait_s_features() -> None:
    model = timm.create_model('ssl_cait', depth=3).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model.forward_intermediates(x, [2], norm=True, output_fmt='NLC', intermediates_only=True)[0]
    model.prune_intermediate_layers([2])
    assert len(model.blocks) == 2 and not len(model.class_blocks)
    torch.testing.assert_close(model(x), expected)
    model.set_input_size(16)
    assert model(x[:, :, :16, :16]).shape == (2, 16, 192)


@pytest.mark.slow
@pytest.mark.parametrize('name', SHALLOW)
@torch.no_grad()
def test_a_small_view_compiles_and_exports(name: str) -> None:
    model = timm.create_model(name, **SMALLEST[name]).eval()
    torch.compiler.reset()  # all models share one forward, which is compiled so many times and no more
    compiled, x = torch.compile(model, fullgraph=True, dynamic=False, backend='eager'), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('batch')},))
    torch.testing.assert_close(program.module()(x[:2]), model(x[:2]))


def test_the_zoo_lists_them() -> None:
    assert sorted(NAMES) == tinyvit_zoo.list_models('ssl_*')
