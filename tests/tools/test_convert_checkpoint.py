"""`tools/convert_checkpoint.py` says what happened, writes the same model, and refuses the wrong."""
import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import timm
import torch
from parity import authors_state, fill, images, mae_shapes, vit_forward, vit_shapes
from torch import Tensor

from tinyvit_zoo import ZooError
from tinyvit_zoo.weights import read_weights, save_weights

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'
_spec = importlib.util.spec_from_file_location('convert_checkpoint', TOOL)
tool = importlib.util.module_from_spec(_spec)
sys.modules['convert_checkpoint'] = tool
_spec.loader.exec_module(tool)

TINY = 'mae_lite_vit_tiny'


def filled(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: fill(name, shape).float() for name, shape in shapes.items()}


def finetuned(classes: int = 4, heads: int = 0) -> dict[str, Tensor]:
    return filled(vit_shapes((64, 64), 16, classes, 192, 12, 4, heads=heads))


def run(tmp_path: Path, state: dict[str, Any], name: str, capsys: pytest.CaptureFixture, *options: str) -> str:
    torch.save(state, tmp_path / 'in.pth')
    code = tool.main([str(tmp_path / 'in.pth'), '--model', name, str(tmp_path / 'out.safetensors'), *options])
    out, err = capsys.readouterr()
    assert (code, err) == (0, '')
    return out


def load(path: Path, name: str, classes: int, **kwargs: Any) -> torch.nn.Module:
    overlay = dict(file=str(path), num_classes=classes)
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, **kwargs).eval()


@torch.no_grad()
def test_a_finetuned_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = {'model': {f'module.model.{name}': tensor for name, tensor in finetuned().items()}, 'epoch': 299}
    said = run(tmp_path, state, TINY, capsys, '--img-size', '64')
    assert f'taken    {len(finetuned())} tensors' in said and '4 classes, 64 x 64 pixels; read back' in said
    assert not any(word in said for word in ('changed', 'dropped', 'fresh'))
    with safetensors.safe_open(tmp_path / 'out.safetensors', 'pt') as file:
        assert json.loads(file.metadata()['pretrained_cfg']) == {'num_classes': 4, 'input_size': [3, 64, 64]}
    x = images([2, 3, 64, 64]).float()
    overlay = dict(file=str(tmp_path / 'out.safetensors'))  # the file itself says the rest
    model = timm.create_model(TINY, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=4, img_size=64).eval()
    torch.testing.assert_close(model(x), vit_forward(x, finetuned(), 12), rtol=1e-4, atol=1e-4)


def test_separate_biases_and_other_sizes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = finetuned(heads=12)
    bias = state.pop('blocks.3.attn.qkv.bias')
    state.update({'blocks.3.attn.q_bias': bias[:192], 'blocks.3.attn.v_bias': bias[384:],
                  'blocks.0.attn.relative_position_index': torch.zeros(4, dtype=torch.long)})
    said = run(tmp_path, state, f'{TINY}_rpe', capsys, '--img-size', '96x32').splitlines()
    assert 'changed  blocks.3.attn.qkv.bias (from blocks.3.attn.q_bias, blocks.3.attn.v_bias)' in said
    assert 'changed  pos_embed (from pos_embed)' in said
    table = 'relative_position_bias_table'
    assert f'changed  blocks.7.rel_pos.{table} (from blocks.7.attn.{table})' in said
    assert [line for line in said if line.startswith('dropped')] == ['dropped  blocks.0.attn.relative_position_index']


@pytest.mark.parametrize('options, fresh, dropped', [
    ((), ['fc_norm.weight', 'fc_norm.bias'], ['norm.weight', 'norm.bias']), (('--global-pool', 'token'), [], [])])
def test_a_pretrained_file(
        options: tuple[str, ...], fresh: list[str], dropped: list[str], tmp_path: Path,
        capsys: pytest.CaptureFixture) -> None:
    state = filled(mae_shapes((224, 224), 16, 192, 12, 4, 96))
    said = run(tmp_path, {'model': state}, TINY, capsys, *options)
    decoder = [name for name in state if name.startswith(('decoder_', 'mask_token'))]
    lines = [line.split()[:2] for line in said.splitlines()]
    assert sorted(name for word, name in lines if word == 'dropped') == sorted(decoder + dropped)
    assert sorted(name for word, name in lines if word == 'fresh') == sorted([*fresh, 'pos_embed'])
    assert 'no classes, 224 x 224' in said
    written = read_weights(tmp_path / 'out.safetensors')
    assert torch.equal(written['blocks.11.mlp.fc1.weight'], state['blocks.11.mlp.fc1.weight'])
    assert 'head.weight' not in written


@torch.no_grad()
def test_other_families(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Renamed tensors are taken ones; a resized table of another name is traced."""
    state = {name: tensor.float() for name, tensor in authors_state('cct_2_3x2', (32, 32), 3, 7).items()}
    said = run(tmp_path, {'state_dict': state}, 'cct_2_3x2', capsys, '--img-size', '48x32')
    assert 'changed  pos_embed (from classifier.positional_emb)' in said and 'dropped' not in said
    model = load(tmp_path / 'out.safetensors', 'cct_2_3x2', 7, img_size=(48, 32))
    torch.testing.assert_close(model.head.weight.data, state['classifier.fc.weight'])
    said = run(tmp_path, state, 'cct_2_3x2', capsys, '--global-pool', 'avg')
    assert 'dropped  classifier.attention_pool.weight' in said


def test_the_teacher_of_a_self_distillation(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    encoder = filled(vit_shapes((32, 32), 4, 0, 192, 9, 2, norm='norm'))
    teacher = {**{f'module.backbone.{name}': tensor for name, tensor in encoder.items()},
               'module.mlphead.mlp.0.weight': torch.ones(512, 192)}
    student = {name: torch.zeros_like(tensor) for name, tensor in teacher.items()}
    state = {'student': student, 'teacher': teacher, 'epoch': 3, 'args': argparse.Namespace(arch='vit')}
    said = run(tmp_path, state, 'ssl_vit', capsys)
    assert [line for line in said.splitlines() if line.startswith('dropped')] == ['dropped  mlphead.mlp.0.weight']
    assert f'taken    {len(encoder)} tensors' in said and 'fresh' not in said and 'changed' not in said
    written = read_weights(tmp_path / 'out.safetensors')
    assert torch.equal(written['blocks.8.norm2.weight'], encoder['blocks.8.norm2.weight'])


def test_the_report_is_what_happened() -> None:
    source = {'a': torch.ones(2), 'b': torch.ones(3), 'c': torch.ones(3), 'd': torch.ones(1), 'e': torch.ones(6)}

    def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {'A': tensors['a'], 'sum': tensors['b'] + tensors['c'], 'new': torch.zeros(1),
                'E': tensors['e'].unflatten(0, (2, 3))}

    report = tool.trace(source, convert)
    assert report == tool.Report(['A', 'E'], {'sum': ['b', 'c']}, ['new'], ['d'])


@pytest.mark.parametrize('change, name, words', [
    (lambda s: s.update(extra=torch.ones(1)), TINY, 'extra is not part of it'),
    (lambda s: s.pop('blocks.2.norm1.bias'), TINY, 'blocks.2.norm1.bias is missing'),
    (lambda s: None, 'mae_lite_vit_small', r'cls_token is \[1, 1, 192\]'),
    (lambda s: None, 'mae_lite_vit_tny', 'Did you mean mae_lite_vit_tiny'),
    (lambda s: None, 'cct_7_3x1.shi_c10_300e', 'without a tag: cct_7_3x1'),
])
def test_refused_in_one_line_and_nothing_is_written(
        change: Any, name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = finetuned()
    change(state)
    torch.save(state, tmp_path / 'in.pth')
    code = tool.main([str(tmp_path / 'in.pth'), '--model', name, str(tmp_path / 'out.safetensors')])
    out, err = capsys.readouterr()
    assert code == 2 and out == '' and err.count('\n') == 1
    with pytest.raises(ZooError, match=words):
        tool.convert_checkpoint(str(tmp_path / 'in.pth'), name, tmp_path / 'out.safetensors')
    assert [path.name for path in tmp_path.iterdir()] == ['in.pth']


@pytest.mark.parametrize('options, words', [
    (['--img-size', '8'], 'at least 16 x 16'), (['--global-pool', 'foo'], "expected '' or 'avg'"),
    (['--model-args', "{'foo': 1}"], 'cannot be made'), (['--model-args', 'foo'], 'expected a dictionary'),
])
def test_options_that_cannot_be_are_one_line(
        options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save(finetuned(), tmp_path / 'in.pth')
    assert tool.main([str(tmp_path / 'in.pth'), '--model', TINY, str(tmp_path / 'out.safetensors'), *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1 and not (tmp_path / 'out.safetensors').exists()


def test_models_made_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Another number of channels, an add-on left out: said by --model-args."""
    for name, args in (('cct_2_3x2', {'in_chans': 1}), ('sl_vit', {'lsa': False})):
        state = timm.create_model(name, num_classes=4, **args).state_dict()
        run(tmp_path, state, name, capsys, '--model-args', str(args))
        torch.testing.assert_close(load(tmp_path / 'out.safetensors', name, 4, **args).state_dict(), state)


def test_a_file_that_gives_back_another_model_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(finetuned(), tmp_path / 'in.pth')

    def damaged(tensors: dict[str, Tensor], path: Path, metadata: Any = None) -> None:
        save_weights({**tensors, 'fc_norm.bias': tensors['fc_norm.bias'] + 1}, path, metadata)

    monkeypatch.setattr(tool, 'save_weights', damaged)
    with pytest.raises(ZooError, match=r'not give the same model \(fc_norm.bias differs\)'):
        tool.convert_checkpoint(str(tmp_path / 'in.pth'), TINY, tmp_path / 'out.safetensors', img_size=64)
    assert not (tmp_path / 'out.safetensors').exists()


def test_a_source_by_name_or_address_is_fetched(
        tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(finetuned(), tmp_path / 'in.safetensors')
    for source in (f'{TINY}.wang_in1k_mae', 'https://example.org/w.pth'):
        asked: list[str] = []

        def fetch(cfg: dict[str, Any], asked: list[str] = asked) -> Path:
            asked.append(cfg['url'])
            return tmp_path / 'in.safetensors'

        monkeypatch.setattr(tool, 'weight_file', fetch)
        assert tool.main([source, '--model', TINY, str(tmp_path / 'out.safetensors'), '--img-size', '64']) == 0
        assert 'read back' in capsys.readouterr().out and asked[0].startswith('https://')


def test_a_source_that_is_not_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(cfg: dict[str, Any]) -> Path:
        raise OSError('no network')

    monkeypatch.setattr(tool, 'weight_file', fetch)
    for source, words in (('https://example.org/w.pth', 'cannot be fetched (no network)'),
                          ('nowhere.pth', 'There is no file nowhere.pth')):
        with pytest.raises(ZooError) as error:
            tool.convert_checkpoint(source, TINY, tmp_path / 'out.safetensors')
        assert words in str(error.value) and r'\n' not in str(error.value)


def test_targets_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_weights(finetuned(), tmp_path / 'in.safetensors')
    for target in ('out.pth', 'no/where.safetensors', 'in.safetensors'):
        with pytest.raises(ZooError):
            tool.convert_checkpoint(str(tmp_path / 'in.safetensors'), TINY, tmp_path / target)
    assert tool.main(['--list']) == 0
    listed = capsys.readouterr().out
    assert 'mae_lite_vit_small.wang_in1k_dmae' in listed and 'cct_7_3x1.shi_c10_300e' in listed
    assert tool.main([]) == 2 and capsys.readouterr().err.count('\n') == 1
