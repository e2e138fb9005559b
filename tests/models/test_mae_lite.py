"""MAE-Lite's ViTs and their pre-training give the authors' numbers; every kind of their files loads or is refused."""
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from parity import fill, images, load_fixtures, mae_forward, mae_shapes, sincos2d, vit_forward, vit_shapes
from timm.models import VisionTransformer
from torch import Tensor, nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.methods import MaskedAutoencoder, mae_lite
from tinyvit_zoo.models import RelativeViT, timm_export
from tinyvit_zoo.models.mae_lite import checkpoint_filter_fn

CASES = {case['name']: case for case in load_fixtures('mae_lite')}
TINY, RPE, SMALL = 'mae_lite_vit_tiny', 'mae_lite_vit_tiny_rpe', 'mae_lite_vit_small'
HEADS = 12
SIZE = (48, 32)  # 3 x 2 patches, and two blocks: enough to tell right from wrong


def filled(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: fill(name, shape) for name, shape in shapes.items()}


def finetuned(rpe: bool = False, img: tuple[int, int] = SIZE, classes: int = 5) -> dict[str, Tensor]:
    return filled(vit_shapes(img, 16, classes, 192, 2, 4, heads=HEADS if rpe else 0))


def pretrained() -> dict[str, Tensor]:
    return filled(mae_shapes(SIZE, 16, 192, 2, 4, 96))


def create(name: str, **kwargs: Any) -> nn.Module:
    return timm.create_model(name, **{'img_size': SIZE, 'depth': 2, 'num_classes': 5, **kwargs}).double().eval()


def load(name: str, state: dict[str, Tensor], **kwargs: Any) -> nn.Module:
    model = create(name, **kwargs)
    model.load_state_dict(checkpoint_filter_fn(state, model))
    return model


def load_file(path: Path, name: str = TINY, file_classes: int = 5, **kwargs: Any) -> nn.Module:
    """Through the strict loader."""
    overlay = dict(file=str(path), num_classes=file_classes)
    return create(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


# -- the numbers -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name, case', [(TINY, CASES['vit_tiny_ft_224']), (RPE, CASES['vit_tiny_rpe_224'])])
@torch.no_grad()
def test_fixture(name: str, case: dict) -> None:
    """The authors' own numbers; the plain definition in parity.py is held to them too."""
    state, x = filled(case['state']), images(case['input'], case['image_seed'])
    expected = torch.tensor(case['logits'], dtype=torch.float64)
    model = timm.create_model(name).double().eval()
    model.load_state_dict(checkpoint_filter_fn(state, model))
    assert sum(p.numel() for p in model.parameters()) == case['params']
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(model.float()(x.float()), expected.float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(vit_forward(x, state, HEADS), expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_pretraining_fixture() -> None:
    case = CASES['mae_tiny_pretrain_224']
    state, x = filled(case['state']), images(case['input'], case['image_seed'])
    noise = torch.from_numpy(np.random.RandomState(1).rand(2, 196))
    model = MaskedAutoencoder(timm.create_model(TINY, num_classes=0, global_pool='token')).double()
    model.load_state_dict(mae_lite.checkpoint_filter_fn(state, model))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == case['params']
    for loss, pred, mask in ((model(x, noise), *model.reconstruct(x, noise)), mae_forward(x, state, HEADS, 3, noise)):
        found = torch.stack([loss.expand(2), mask.sum(1), pred.mean((1, 2)), pred.std((1, 2)), pred[:, 0, 0],
                             pred[:, 195, 767]], dim=1)
        torch.testing.assert_close(found, torch.tensor(case['logits'], dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize('name, img, classes, chans', [
    (TINY, (48, 32), 5, 3), (TINY, (16, 70), 1000, 1), (SMALL, (33, 32), 3, 4), (RPE, (48, 32), 5, 3),
    (RPE, (16, 64), 7, 1), (RPE, (70, 16), 0, 3)])
@torch.no_grad()
def test_sizes_channels_classes(name: str, img: tuple[int, int], classes: int, chans: int) -> None:
    shapes = vit_shapes(img, 16, classes, 384 if name == SMALL else 192, 2, 4, HEADS if name == RPE else 0, chans=chans)
    model = load(name, filled(shapes), img_size=img, num_classes=classes, in_chans=chans)
    x = images([2, chans, *img])
    torch.testing.assert_close(model(x), vit_forward(x, filled(shapes), HEADS), rtol=0, atol=1e-9)


@pytest.mark.parametrize('decoder, kwargs', [(96, {}), (192, dict(decoder_heads=6, decoder_depth=2, mask_ratio=0.5))])
@torch.no_grad()
def test_pretraining_at_other_sizes(decoder: int, kwargs: dict) -> None:
    state = filled(mae_shapes((64, 48), 16, 384, 2, 4, decoder, kwargs.get('decoder_depth', 1)))
    encoder = create(SMALL, img_size=(64, 48), num_classes=0, global_pool='token')
    model = MaskedAutoencoder(encoder, decoder, **kwargs)
    model.load_state_dict(mae_lite.checkpoint_filter_fn({'model': state}, model))
    x, noise = images([3, 3, 64, 48]), torch.rand(3, 12, dtype=torch.float64)
    expected = mae_forward(x, state, HEADS, kwargs.get('decoder_heads', 3), noise, kwargs.get('mask_ratio', 0.75))
    for found, wanted in zip((model(x, noise), *model.reconstruct(x, noise)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize('name, count', [(TINY, 5_717_416), (RPE, 5_822_824), (SMALL, 22_050_664)])
def test_parameter_count(name: str, count: int) -> None:
    assert sum(p.numel() for p in timm.create_model(name, device='meta').parameters()) == count


# -- pre-training ------------------------------------------------------------------------------------------------------
def test_pretraining_trains_all_but_the_tables_and_masks_at_random() -> None:
    encoder = timm.create_model(TINY, img_size=SIZE, depth=2, num_classes=0, global_pool='token')
    model, x = MaskedAutoencoder(encoder), torch.randn(4, 3, *SIZE)
    torch.testing.assert_close(encoder.pos_embed.data.double(), sincos2d((3, 2), 192))
    assert abs(encoder.cls_token.std().item() - 0.02) < 0.01
    prediction, mask = model.reconstruct(x)
    assert prediction.shape == (4, 6, 768) and mask.sum(1).tolist() == [5] * 4
    assert not torch.equal(mask, model.reconstruct(x)[1])
    model(x).backward()
    fixed = [name for name, p in model.named_parameters() if p.grad is None]
    assert fixed == ['encoder.pos_embed'] and not encoder.pos_embed.requires_grad
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.isfinite(model(x))


def test_pretraining_wants_an_encoder_without_classifier() -> None:
    for kwargs in (dict(), dict(num_classes=0), dict(global_pool='token')):
        with pytest.raises(ZooError, match="num_classes=0, global_pool='token'"):
            MaskedAutoencoder(create(TINY, **{'num_classes': 3, **kwargs}))


# -- the authors' files ------------------------------------------------------------------------------------------------
def split_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout with `q_bias` and `v_bias`, and none for the keys."""
    split = dict(state)
    for name in [name for name in state if name.endswith('qkv.bias')]:
        q, _, v = split.pop(name).chunk(3)
        split.update({name.replace('qkv.bias', 'q_bias'): q, name.replace('qkv.bias', 'v_bias'): v})
    return split


PREFIXES = {
    'bare': lambda s: s, 'model': lambda s: {'model': s, 'epoch': 300},
    'model.': lambda s: {'model': {f'model.{k}': v for k, v in s.items()}},
    'module.model.': lambda s: {'model': {f'module.model.{k}': v for k, v in s.items()}, 'optimizer': {}},
}


@pytest.mark.parametrize('rpe', [False, True])
@pytest.mark.parametrize('prefix', PREFIXES)
@torch.no_grad()
def test_finetuned_files(prefix: str, rpe: bool, tmp_path: Path) -> None:
    torch.save(PREFIXES[prefix](finetuned(rpe)), tmp_path / 'w.pth')
    x = images([2, 3, *SIZE])
    expected = vit_forward(x, finetuned(rpe), HEADS)
    model = load_file(tmp_path / 'w.pth', RPE if rpe else TINY)  # goes through float32
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_both_bias_layouts_and_none_of_their_tensors_is_lost() -> None:
    state, x = finetuned(rpe=True), images([2, 3, *SIZE])
    for name in [name for name in state if name.endswith('qkv.bias')]:
        state[name][192:384] = 0
    one, two = load(RPE, state), load(RPE, split_biases(state))
    expected = vit_forward(x, state, HEADS)
    torch.testing.assert_close(one(x), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(two(x), expected, rtol=0, atol=1e-9)
    found = split_biases(two.state_dict())
    for name, tensor in split_biases(state).items():
        torch.testing.assert_close(found[name.replace('attn.relative', 'rel_pos.relative')], tensor)


def d2mae() -> dict[str, Tensor]:
    extra = {'blocks.2.norm1.weight': [192], 'blocks.2.attn.qkv.weight': [576, 192]}
    teacher = {'tch_model.cls_token': [1, 1, 768], 'attn_adapter.weight': [12, 12, 1, 1]}
    own = {f'model.{k}': v for k, v in {**pretrained(), **filled(extra)}.items()}
    return {'model': {f'module.{k}': v for k, v in {**own, **filled(teacher)}.items()}}


def dmae() -> dict[str, Any]:
    return {'model': {k: v for k, v in d2mae()['model'].items() if 'blocks.2' not in k or 'decoder' in k}}


def moco() -> dict[str, Any]:
    encoder = filled(vit_shapes(SIZE, 16, 0, 192, 2, 4, norm='norm'))
    del encoder['pos_embed']
    heads = filled({'base_encoder.head.0.weight': [64, 192], 'predictor.0.weight': [64, 64],
                    'momentum_encoder.head.0.weight': [64, 192]})
    both = {f'{side}_encoder.{k}': v for side in ('base', 'momentum') for k, v in encoder.items()}
    return {'model': {f'module.{k}': v for k, v in {**both, **heads}.items()}}


def ours() -> dict[str, Any]:
    model = MaskedAutoencoder(create(TINY, num_classes=0, global_pool='token'))
    model.load_state_dict(mae_lite.checkpoint_filter_fn(pretrained(), model))
    return model.state_dict()


PRETRAINED = {'mae': (pretrained, ['mask_token', 'decoder_pred.weight']),
              'mae with table': (lambda: {**pretrained(), 'pos_embed': sincos2d((3, 2), 192)}, ['mask_token']),
              'dmae': (dmae, ['tch_model.cls_token', 'attn_adapter.weight', 'decoder_blocks.0.norm1.weight']),
              'd2mae': (d2mae, ['tch_model.cls_token', 'attn_adapter.weight', 'blocks.2.attn.qkv.weight']),
              'moco': (moco, ['base_encoder.head.0.weight', 'momentum_encoder.cls_token', 'predictor.0.weight']),
              'ours': (ours, ['mask_token', 'decoder_pos_embed'])}


@pytest.mark.parametrize('kind', PRETRAINED)
@torch.no_grad()
def test_pretrained_files(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The encoder is taken; the log names what is not, and what starts fresh."""
    make, dropped = PRETRAINED[kind]
    torch.save(make(), tmp_path / 'w.pth')
    caplog.set_level(logging.INFO, 'tinyvit_zoo')
    model = load_file(tmp_path / 'w.pth', file_classes=0)
    left_out = ' '.join(r.getMessage() for r in caplog.records if r.getMessage().startswith('Left out'))
    assert all(name in left_out for name in [*dropped, 'norm.weight'])
    assert [r.getMessage() for r in caplog.records if r.levelname == 'WARNING' and 'fc_norm.weight' in r.getMessage()]

    encoder = load_file(tmp_path / 'w.pth', file_classes=0, num_classes=0, global_pool='token')
    state = filled(vit_shapes(SIZE, 16, 0, 192, 2, 4, norm='norm'))
    state['pos_embed'] = sincos2d((3, 2), 192, row_first=kind == 'moco')
    if kind == 'd2mae':  # its norm belongs to an inner block
        state.update({'norm.weight': torch.ones(192).double(), 'norm.bias': torch.zeros(192).double()})
        assert 'norm.weight' in caplog.records[-1].getMessage() and caplog.records[-1].levelname == 'WARNING'
    x = images([2, 3, *SIZE])
    torch.testing.assert_close(encoder(x), vit_forward(x, state, HEADS), rtol=0, atol=1e-4)
    for name, tensor in encoder.state_dict().items():
        if not name.startswith('norm.'):
            torch.testing.assert_close(model.state_dict()[name], tensor)


def test_a_pretrained_file_serves_the_model_with_relative_positions(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(split_biases(pretrained()), tmp_path / 'w.pth')
    model = load_file(tmp_path / 'w.pth', RPE, file_classes=0)
    assert 'blocks.1.rel_pos.relative_position_bias_table' in caplog.text
    torch.testing.assert_close(model.blocks[1].attn.qkv.bias[:192], pretrained()['blocks.1.attn.qkv.bias'][:192],
                               rtol=0, atol=1e-6)


@pytest.mark.parametrize('name, make, classes, words', [
    (TINY, lambda: finetuned(rpe=True), 5, r'rel_pos.relative_position_bias_table is not part of it'),
    (RPE, lambda: finetuned(), 5, r'blocks.0.rel_pos.relative_position_bias_table is missing'),
    (RPE, lambda: {k: v for k, v in finetuned(rpe=True).items() if '1.attn.relative' not in k}, 5,
     r'blocks.1.rel_pos.relative_position_bias_table is missing'),
    (SMALL, finetuned, 5, r'cls_token is \[1, 1, 192\], expected \[1, 1, 384\]'),
    (TINY, lambda: {**finetuned(), 'blocks.2.norm1.weight': torch.ones(192)}, 5, 'blocks.2.norm1.weight is not part'),
    (TINY, lambda: {**finetuned(), 'blocks.1.attn.q_bias': torch.ones(192)}, 5, 'remove the wrong one'),
    (TINY, lambda: {k: v for k, v in split_biases(finetuned()).items() if k != 'blocks.1.attn.v_bias'}, 5,
     'blocks.1.attn.qkv.bias is missing; blocks.1.attn.q_bias is not part of it'),
    (TINY, pretrained, 5, r'head.weight is missing.*dict\(file=PATH, num_classes=0\)'),
    (TINY, lambda: {k: v for k, v in pretrained().items() if k != 'blocks.1.mlp.fc1.bias'}, 0,
     'blocks.1.mlp.fc1.bias is missing'),
    (TINY, lambda: {k: v for k, v in finetuned().items() if 'fc_norm' not in k}, 5, 'fc_norm.weight is missing'),
    (TINY, lambda: {k: v for k, v in finetuned().items() if k != 'pos_embed'}, 5, 'pos_embed is missing'),
    (TINY, lambda: {**moco()['model'], 'module.queue': torch.ones(3)}, 0, 'queue is not part of it'),
])
def test_what_does_not_fit_is_refused_by_name(
        name: str, make: Any, classes: int, words: str, tmp_path: Path) -> None:
    torch.save(make(), tmp_path / 'w.pth')
    with pytest.raises(ZooError, match=words) as error:
        load_file(tmp_path / 'w.pth', name, classes)
    assert r'\n' not in str(error.value)


# -- other sizes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', [TINY, RPE])
@torch.no_grad()
def test_all_tables_resize_with_the_image(name: str, tmp_path: Path) -> None:
    """On load and in a model that is there, to the same numbers; and they keep their values where nothing changes."""
    torch.save(finetuned(name == RPE, img=(64, 64)), tmp_path / 'w.pth')
    resized = load_file(tmp_path / 'w.pth', name, img_size=(96, 32))
    model = load_file(tmp_path / 'w.pth', name, img_size=64)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.set_input_size((96, 32))
    x = images([2, 3, 96, 32])
    torch.testing.assert_close(model(x), resized(x), rtol=0, atol=1e-4)
    if name == RPE:
        table = model.blocks[1].rel_pos.relative_position_bias_table
        key = 'blocks.1.rel_pos.relative_position_bias_table'
        assert table.shape == (11 * 3 + 3, HEADS)
        torch.testing.assert_close(table[-3:], before[key][-3:], rtol=0, atol=1e-6)  # the class token's
        itself = before[key][3 * 7 + 3]  # a patch and itself: in the middle of the offsets
        torch.testing.assert_close(table[5 * 3 + 1], itself, rtol=0, atol=1e-6)
        assert set(model.no_weight_decay()) >= {key, 'pos_embed', 'cls_token'}


@torch.no_grad()
def test_a_fixed_table_that_the_file_does_not_hold_is_that_of_its_size(tmp_path: Path) -> None:
    """Told the file's size, the table is made for it and resized, as the one in a file would be."""
    torch.save(pretrained(), tmp_path / 'without.pth')
    torch.save({**pretrained(), 'pos_embed': sincos2d((3, 2), 192).float()}, tmp_path / 'with.pth')
    tables = []
    for file in ('without.pth', 'with.pth'):
        overlay = dict(file=str(tmp_path / file), num_classes=0, input_size=(3, *SIZE))
        model = create(TINY, pretrained=True, pretrained_cfg_overlay=overlay, img_size=96, num_classes=0)
        tables.append(model.pos_embed.data)
    torch.testing.assert_close(tables[0], tables[1])
    assert tables[0].shape == (1, 37, 192)


# -- timm's own model --------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_exports_load_with_timm_alone(tmp_path: Path) -> None:
    for name, kwargs in ((SMALL, dict(num_classes=3)), ('mae_vit_c100', dict(img_size=(24, 36), in_chans=1))):
        model = timm.create_model(name, depth=2, **kwargs).eval()
        assert type(model) is VisionTransformer
        x = torch.randn(2, model.in_chans, *model.patch_embed.img_size)
        timm.models.save_for_hf(model, str(tmp_path / name), **timm_export(model))
        torch.save((x, model(x)), tmp_path / name / 'expected.pt')
    code = f'''
import sys, timm, torch
for name in ({SMALL!r}, 'mae_vit_c100'):
    model = timm.create_model(f'local-dir:{{name}}', pretrained=True).eval()
    x, expected = torch.load(f'{{name}}/expected.pt')
    torch.testing.assert_close(model(x), expected)
    print('tinyvit_zoo' in sys.modules, type(model).__module__)
'''
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ['False timm.models.vision_transformer'] * 2


def test_what_is_not_timms_own_is_not_exported_as_such(tmp_path: Path) -> None:
    model = create(RPE).float()
    assert isinstance(model, RelativeViT)
    with pytest.raises(ZooError, match='RelativeViT is not a class of timm'):
        timm_export(model)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    back = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    x = torch.randn(2, 3, *SIZE)
    torch.testing.assert_close(back.eval()(x), model(x))
