"""Exported files give what the models give, at any batch size, and say how images are prepared."""
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

import tinyvit_zoo  # noqa: F401
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.errors import ZooError
from tinyvit_zoo.publish.export import TOLERANCE, compare, difference, export, load_exported
from tinyvit_zoo.publish.formats import FORMATS, folded, program_of, set_formulas
from tinyvit_zoo.weights import save_weights

TWO_STAGES: dict[str, Any] = dict(depths=(1, 1), num_heads=(3, 6))
# One of each family, cut down.
CASES = [
    ('cct_2_3x2', dict()), ('cct_2_3x2', dict(pos_embed='sine')), ('vit_lite_2_4', dict()), ('sl_vit', dict(depth=1)),
    ('sl_pit', dict(depths=(1, 1), num_heads=(2, 4), embed_dims=(96, 192))), ('sl_cait', dict(depth=1, class_depth=1)),
    ('sl_t2t', dict(depth=1)), ('sl_swin', TWO_STAGES), ('ssl_vit', dict(depth=1)), ('ssl_swin', TWO_STAGES),
    ('ssl_cait', dict(depth=1, class_depth=1)), ('mae_vit_c10', dict(depth=1)),
    ('mae_lite_vit_tiny_rpe', dict(depth=1, img_size=64)),
]
QUICK = CASES[0], CASES[3]


def made(name: str, args: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=7, **args).eval()


def size_of(model: torch.nn.Module, args: dict[str, Any]) -> tuple[int, int, int]:
    size = args.get('img_size', model.pretrained_cfg['input_size'][-1])
    return 3, size, size


@pytest.mark.parametrize(('name', 'args', 'suffix'), [
    pytest.param(*case, suffix, marks=() if case in QUICK else pytest.mark.slow)
    for suffix, cases in (('.onnx', CASES), ('.pt2', QUICK)) for case in cases])
def test_an_export_gives_what_the_model_gives(name: str, args: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    if suffix == '.onnx':
        pytest.importorskip('onnxruntime')
        pytest.importorskip('onnxscript')
    model = made(name, args)
    size, path = size_of(model, args), tmp_path / f'model{suffix}'
    told = export(model, size, path)['largest_difference']
    exported = load_exported(path)
    images = torch.randn(5, *size)
    with torch.inference_mode():
        expected = model(images)
        torch.testing.assert_close(exported(images), expected, atol=TOLERANCE, rtol=0)
    assert told <= TOLERANCE < expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(('suffix', 'package', 'case'), [
    ('.xml', 'openvino', CASES[0]), ('.xml', 'openvino', CASES[4]), ('.tflite', 'litert_torch', CASES[0]),
    ('.tflite', 'litert_torch', CASES[7]), ('.pte', 'executorch.exir', ('fast_cnn_half', {})),
    ('.pte', 'executorch.exir', CASES[4]), ('.mlpackage', 'coremltools', CASES[5])])
def test_other_formats_give_what_the_model_gives(
        suffix: str, package: str, case: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip(package)
    model, path = made(*case), tmp_path / f'model{suffix}'
    told = export(model, (3, 32, 32), path)['largest_difference']
    assert path.exists()
    if suffix == '.mlpackage':      # Apple's machines alone run it
        assert told is None
        return
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(load_exported(path)(images), model(images), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize('calibrated', [False, True])
def test_products_in_8_bits_do_not_overflow(calibrated: bool, tmp_path: Path) -> None:
    """CPUs with AVX2 alone add two products of 8 bits in 16."""
    onnx = pytest.importorskip('onnx')
    for library in ('onnxruntime', 'onnxscript'):
        pytest.importorskip(library)
    path, images = tmp_path / 'a.onnx', torch.randn(8, 3, 32, 32) if calibrated else None
    export(made('cct_2_3x2', {}), (3, 32, 32), path, int8=True, images=images)
    weights = [onnx.numpy_helper.to_array(each).astype(int) for each in onnx.load(path).graph.initializer
               if each.data_type == onnx.TensorProto.INT8]
    assert weights and max(abs(each).max() for each in weights) in (63, 64)


@pytest.mark.parametrize('lost', [10, 40])
def test_a_file_that_is_much_less_accurate_is_told(lost: int, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = torch.eye(2).repeat(500, 1), torch.tensor([0, 1]).repeat(500)
    bench: Any = SimpleNamespace(batches=lambda split: [(images, labels)], source=SimpleNamespace(name='photos'),
                                 loaded=SimpleNamespace(model=lambda images: images))
    sign = torch.ones(1000, 1)
    sign[:lost] = -1
    assert compare(bench, lambda images: images * sign, strict=False)['top1'] == 100 - lost / 10
    told = 'The file in 8 bits is 4.0 points less accurate than the model on photos: prefer float32.\n'
    assert capsys.readouterr().out == ('' if lost == 10 else told)


@pytest.mark.slow
def test_a_fully_integer_file_for_small_devices(tmp_path: Path) -> None:
    pytest.importorskip('litert_torch')
    pytest.importorskip('ai_edge_quantizer')
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
    assert main(['export', 'cct_2_3x2.digits', str(tmp_path / 'a.tflite'), '--int8', '--data', 'digits']) == 0
    measured = json.loads((tmp_path / 'a.tflite.json').read_text())['measured']
    assert measured['top1'] > measured['top1_model'] - 2
    interpreter = Interpreter(str(tmp_path / 'a.tflite'),
                              experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    assert {tensor['dtype'].__name__ for tensor in interpreter.get_tensor_details()} <= {'int8', 'int32'}


@pytest.mark.parametrize('case', [CASES[3], CASES[7], ('fast_cnn_half', {})])
def test_what_needs_no_image_is_a_constant(case: tuple[str, dict[str, Any]]) -> None:
    """Converters to other formats do not know how masks are made, nor the maximum over an image."""
    model, images = made(*case), torch.randn(2, 3, 32, 32)
    expected = model(images)
    set_formulas(model)
    module = folded(program_of(model, (3, 32, 32), batch=2))
    used = {str(node.target) for node in module.graph.nodes if node.op == 'call_function'}
    assert not any(name in target for target in used for name in ('eye', 'arange', 'adaptive_max'))
    torch.testing.assert_close(module(images), expected, rtol=0, atol=1e-5)


def test_a_file_that_its_runtime_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path) -> None:
        raise ValueError('no such operation')
    monkeypatch.setattr('tinyvit_zoo.publish.export.load_exported', load)
    with pytest.raises(ZooError, match='no such operation'):
        export(made('cct_2_3x2', {}), (3, 32, 32), tmp_path / 'a.pt2')


def test_another_models_numbers_are_noticed() -> None:
    one, other = made('cct_2_3x2', {}), made('cct_2_3x2', {})
    assert difference(one, other, (3, 32, 32)) == 0
    with torch.no_grad():
        next(p for name, p in other.named_parameters() if name.endswith('head.bias'))[3] += 0.01
    assert difference(one, other, (3, 32, 32)) == pytest.approx(0.01, rel=1e-3)
    answers = iter([torch.zeros(1), torch.full((1,), math.nan)])
    assert math.isnan(difference(lambda images: next(answers), lambda images: torch.zeros(1), (3, 8, 8)))


def test_a_file_that_gives_other_numbers_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('tinyvit_zoo.publish.export.load_exported', lambda path: made('vit_lite_2_4', {}))
    with pytest.raises(ZooError, match='differs from the model'):
        export(made('cct_2_3x2', {}), (3, 32, 32), tmp_path / 'a.pt2')
    monkeypatch.setattr(
        'tinyvit_zoo.publish.export.load_exported', lambda path: lambda images: images[:, 0, 0, :7] * torch.nan)
    with pytest.raises(ZooError, match='differs from the model'):
        export(made('cct_2_3x2', {}), (3, 32, 32), tmp_path / 'a.pt2')


@pytest.mark.slow
def test_any_size_where_the_model_takes_it(tmp_path: Path) -> None:
    model = made('cct_2_3x2', dict(pos_embed='none'))
    path = tmp_path / 'a.pt2'
    try:
        export(model, (3, 32, 32), path, any_size=True)
    except ZooError as e:
        pytest.fail(str(e))
    images = torch.randn(2, 3, 48, 40)
    with torch.inference_mode():
        torch.testing.assert_close(load_exported(path)(images), model(images), atol=TOLERANCE, rtol=0)
    with pytest.raises(ZooError, match='leave out any_size'):
        export(made('vit_lite_2_4', {}), (3, 32, 32), path, any_size=True)


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """cct_2_3x2 with random weights, as a model of the command's."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'w.safetensors'
    model = timm.create_model('cct_2_3x2', num_classes=10)
    save_weights(model.state_dict(), path, {'pretrained_cfg': json.dumps({
        'num_classes': 10, 'input_size': [3, 32, 32], 'mean': [0.1, 0.2, 0.3], 'std': [0.5, 0.6, 0.7],
        'label_names': list('0123456789')})})
    return f'cct_2_3x2={path}'


@pytest.mark.slow
def test_the_command_measures_and_writes_the_preprocessing(
        weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for library in ('sklearn', 'onnxruntime', 'onnxscript'):
        pytest.importorskip(library)
    assert main(['export', weights, str(tmp_path / 'small.onnx'), '--int8', '--data', 'digits']) == 0
    out = capsys.readouterr().out
    told = json.loads((tmp_path / 'small.onnx.json').read_text())
    assert (told['mean'], told['std'], told['input_size']) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [3, 32, 32])
    assert told['label_names'] == list('0123456789') and told['int8'] and told['measured']['images'] == 360
    assert sorted(path.name for path in tmp_path.iterdir()) == ['small.onnx', 'small.onnx.json']

    from tinyvit_zoo.augment.batched import normalize
    from tinyvit_zoo.data.batches import in_memory
    from tinyvit_zoo.data.sources import open_source

    test = open_source('digits').test
    assert test is not None
    images = normalize(in_memory(test, (32, 32), 3), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    exported = load_exported(tmp_path / 'small.onnx')
    guesses = torch.cat([exported(part).argmax(1) for part in images.split(64)])
    top1 = 100 * (guesses == test.labels).float().mean().item()
    assert told['measured']['top1'] == pytest.approx(top1) and f'top-1 {top1:.2f} %' in out
    assert 1e-6 < told['measured']['largest_difference'] < 1       # it is quantised
    assert (tmp_path / 'small.onnx').stat().st_size < 0.7 * 283_723 * 4


@pytest.mark.parametrize(('argv', 'said'), [
    ([], 'Give MODEL and OUT'),
    (['cct_2_3x2.untrained', 'a.h5'], 'OUT is a.h5, expected a name ending in .onnx'),
    (['cct_2_3x2.untrained', 'a.tflite', '--int8'], 'give data'),
    (['cct_2_3x2.untrained', '/no/such/a.pt2'], '/no/such'),
    (['cct_2_3x2.untrained', 'a.pt2', '--int8'], 'int8 is for ONNX'),
    (['cct_2_3x2.untrained', 'a.pt2', '--img-size', '0'], "--img-size: '0' is not a whole number"),
    (['cct_2_3x9.untrained', 'a.pt2'], 'Did you mean cct_2_3x2'),
    (['cct_2_3x2.untrained', 'a.pt2', '--data', 'npz:/no/such.npz'], '/no/such.npz'),
    (['--all', 'nothing*'], 'No model matches'),
    (['cct_2_3x2', '--all'], 'leave out the other arguments'),
])
def test_a_mistake_is_one_line_and_leaves_nothing(
        argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(['export', *argv]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count('\n') == 1 and not out and not any(tmp_path.iterdir())


@pytest.mark.parametrize('there', ['{"recipe": {}}', 'no json', '{"made_by": "tinyvit_zoo", "format": "onnx"}'])
def test_another_json_is_left_alone(there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside = tmp_path / 'a.pt2.json'
    beside.write_text(there)
    assert main(['export', 'cct_2_3x2.untrained', str(tmp_path / 'a.pt2')]) == 2
    assert 'choose another name' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [beside] and beside.read_text() == there
    beside.unlink()
    os.mkfifo(beside)       # which reading would wait for
    assert main(['export', 'cct_2_3x2.untrained', str(tmp_path / 'a.pt2')]) == 2


def test_each_format_has_a_json(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'a.onnx.json').write_text('{}')     # as of another format
    assert main(['export', weights, str(tmp_path / 'a.pt2')]) == 0
    assert json.loads((tmp_path / 'a.pt2.json').read_text())['format'] == 'pt2'
    assert f'{tmp_path / "a.pt2.json"}: its preprocessing and classes; the output is logits' in capsys.readouterr().out


def test_an_encoder_gives_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for library in ('onnxruntime', 'onnxscript'):
        pytest.importorskip(library)
    save_weights(timm.create_model('cct_2_3x2', num_classes=0).state_dict(), tmp_path / 'w.safetensors', {
        'pretrained_cfg': json.dumps({'num_classes': 0, 'input_size': [3, 32, 32]})})
    path = tmp_path / 'a.onnx'
    assert main(['export', f'cct_2_3x2={tmp_path / "w.safetensors"}', str(path)]) == 0
    assert 'a.onnx.json: its preprocessing; the output is features\n' in capsys.readouterr().out
    told = json.loads((tmp_path / 'a.onnx.json').read_text())
    assert (told['output'], told['probabilities']) == ('features', None)
    import onnxruntime
    assert onnxruntime.InferenceSession(path).get_outputs()[0].name == 'features'


def test_one_size_is_told_in_plain_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(['export', 'cct_2_3x2.untrained', str(tmp_path / 'a.pt2'), '--any-size']) == 2
    assert capsys.readouterr().err == 'tinyvit-zoo: The model takes images of one size: leave out any_size.\n'


def test_a_missing_extra_says_the_command(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert main(['export', 'cct_2_3x2.untrained', str(tmp_path / 'a.onnx')]) == 2
    assert "pip install 'tinyvit-zoo[export]'" in capsys.readouterr().err


def test_a_full_disk_is_no_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own writer ends the process there."""
    monkeypatch.setattr(torch.export, 'save', lambda program, file: file.write(b'a'))
    with pytest.raises(OSError, match='No space left'):
        FORMATS['.pt2'].write(torch.nn.Linear(2, 2), (2,), Path('/dev/full'), False)
