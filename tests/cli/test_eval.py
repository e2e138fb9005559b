"""`tinyvit-zoo eval`: its figures are right, and a mistake is one line."""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from training_cases import run as run_training

from tinyvit_zoo.cli.main import main
from tinyvit_zoo.measure.bench import Bench
from tinyvit_zoo.measure.corruptions import CORRUPTIONS
from tinyvit_zoo.weights import save_weights

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `tinyvit-zoo eval`, which has to succeed, and returns what it printed."""
    def run_command(*argv: object) -> str:
        assert main(['eval', '--device', 'cpu', *map(str, argv)]) == 0
        return capsys.readouterr().out
    return run_command


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs it, which has to fail as mistakes do, and returns the one line."""
    def run_command(*argv: object) -> str:
        try:
            code = main(['eval', '--device', 'cpu', *map(str, argv)])
        except SystemExit as e:
            code = e.code
        out, err = capsys.readouterr()
        assert code == 2 and out == '' and err.count('\n') == 1 and err.startswith('tinyvit-zoo: ')
        return err
    return run_command


@pytest.fixture(scope='module')
def trained(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp('run') / 'trained'
    assert run_training(data, output) == 0
    return output


# -- preprocessing ----------------------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize('name, args', [
    ('resnet18.untrained', ['--img-size', '24']),           # cropped from a larger size, bilinear
    ('cct_2_3x2.untrained', []),                            # enlarged from 16 to 32, as it is
    ('cct_2_3x2.untrained', ['--img-size', '16'])])
def test_figures_are_those_of_timms_transform(
        data: str, run: Run, name: str, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image by image. The class count is that of the data, so that there is an accuracy."""
    architecture = name.partition('.')[0]
    create = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda *a, **k: create(*a, num_classes=4, **k))
    found = json.loads(run(name, '--data', data, '--json', *args))[0]

    torch.manual_seed(0)
    size = {'img_size': int(args[1])} if args and 'resnet' not in name else {}
    model = create(architecture, num_classes=4, **size).eval()
    cfg = resolve_model_data_config(model)
    if args:
        cfg['input_size'] = (3, int(args[1]), int(args[1]))
    transform: Any = create_transform(**cfg)
    arrays = np.load(data.removeprefix('npz:'))
    logits = torch.cat([model(transform(Image.fromarray(image))[None]) for image in arrays['test_images']])
    labels = torch.from_numpy(arrays['test_labels'])
    assert found['input_size'] == list(cfg['input_size'])
    assert found['loss'] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert found['top1'] == pytest.approx(100 * logits.argmax(1).eq(labels).double().mean().item())


# -- end to end -------------------------------------------------------------------------------------------------------
def test_a_run_has_the_figure_that_it_ended_with(data: str, trained: Path, run: Run, tmp_path: Path) -> None:
    """By its directory, by its file, and by its file with a name; and the picture is there."""
    result = json.loads((trained / 'result.json').read_text())['figures']['test']
    file = trained / 'weights.safetensors'
    out = run(trained, '--data', data, '--confusion', tmp_path / 'a.png')
    words = out.split()
    assert f'{result["top1"]:.2f}' in words and f'{result["loss"]:.4f}' in words and 'top-5' not in words
    assert (tmp_path / 'a.png').read_bytes()[:4] == b'\x89PNG'
    records = json.loads(run(trained, file, f'cct_2_3x2={file}', '--data', data, '--json'))
    for record in records:
        assert record['top1'] == pytest.approx(result['top1']) and record['loss'] == pytest.approx(result['loss'])
    assert [record['epochs'] for record in records] == [3, None, None]


def test_the_top1_has_wilsons_interval(data: str, trained: Path, run: Run) -> None:
    """Also beside those of a bootstrap, which is of no width where all answers are right or wrong."""
    options = trained, '--data', data, '--bootstrap', 20
    record, = json.loads(run(*options, '--json'))
    low, high = record['interval']
    assert record['intervals']['top1'] != [low, high]
    out = run(*options)
    assert f'  top-1     {record["top1"]:.2f} %, 95 % interval {low:.2f} to {high:.2f}\n' in out
    low, high = record['intervals']['f1']
    assert f'  F1        {record["f1"]:.2f} %, 95 % interval {low:.2f} to {high:.2f}\n' in out


def test_calibration_by_the_command(data: str, trained: Path, run: Run, refused: Run, tmp_path: Path) -> None:
    """To the validation images of the data; both errors are shown."""
    assert 'no validation images' in refused(trained, '--data', data, '--calibrate')
    arrays = dict(np.load(data.removeprefix('npz:')))
    np.savez(tmp_path / 'a.npz', **arrays, val_images=arrays['test_images'], val_labels=arrays['test_labels'])
    shutil.copytree(trained, tmp_path / 'run')
    out = run(tmp_path / 'run', '--data', f'npz:{tmp_path / "a.npz"}', '--calibrate', '--reliability',
              tmp_path / 'a.png')
    assert '  ECE ' in out and re.search(r'  ECE at T  0\.\d{4}, temperature \d+\.\d{3}\n', out)
    assert 'ECE at T' in run(tmp_path / 'run', '--data', data) and 'ECE at T' not in run(trained, '--data', data)
    assert '--img-size' in refused(trained, '--data', data, '--calibrate', '--img-size', 16)
    assert 'no file to store' in refused('cct_2_3x2.digits', '--data', data, '--calibrate')
    encoder = tmp_path / 'encoder.safetensors'
    save_weights(timm.create_model('cct_2_3x2', num_classes=0).state_dict(), encoder, {
        'recipe': 'cct_2_3x2.mine', 'pretrained_cfg': '{"num_classes": 0}'})
    assert 'without probabilities to calibrate' in refused(
        encoder, '--data', f'npz:{tmp_path / "a.npz"}', '--calibrate', '--knn')


def test_a_table_of_runs_and_encoders(data: str, trained: Path, run: Run) -> None:
    """An encoder, or one with other classes, has features to judge and no accuracy."""
    lines = run(trained, 'cct_2_3x2.untrained', 'ssl_vit.untrained', '--data', data, '--img-size', 16, '--knn',
                '--probe').splitlines()
    head = lines[0].split()
    assert head[-2:] == ['k-NN', 'probe'] and 'top-1' in head and len(lines) == 4
    assert lines[2].split()[3:6] == ['-', '-', '-']
    records = json.loads(run('ssl_vit.untrained', trained, '--data', data, '--img-size', 16, '--knn', '--json'))
    assert 'top1' not in records[0] and 0 <= records[0]['knn']['top1'] <= 100 and 'probe' not in records[0]
    assert 0 < records[0]['knn']['spread'] < 1 and 'top1' in records[1]


def test_digits_untrained_and_its_features(run: Run) -> None:
    """Random features of digits are far above chance, and the names of the classes are the digits'."""
    pytest.importorskip('sklearn')
    found = json.loads(run('cct_2_3x2.untrained', '--data', 'digits', '--knn', '--probe', '--fraction', '0.3',
                           '--img-size', '16', '--json'))[0]
    assert found['knn']['top1'] > 50 and found['probe']['top1'] > 50 and found['images'] == 360
    assert [row['class'] for row in found['classes']] == list('0123456789')


def test_by_class_names_are_the_weights_where_the_data_has_numbers(
        data: str, trained: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run(trained, '--data', data, '--per-class')
    assert out.splitlines()[-5].split()[:2] == ['0', '6'] and 'are grades 0 < 1 < 2' in out.splitlines()[-1]
    monkeypatch.setattr(Bench, 'class_names', ['red', 'green', 'blue', 'grey'])
    assert 'green' in run(trained, '--data', data, '--per-class')


def test_number_format_and_batch_size_change_little(data: str, trained: Path, run: Run) -> None:
    plain, other, short = (json.loads(run(trained, '--data', data, '--json', *more))[0] for more in (
        [], ['--batch-size', '5'], ['--precision', 'bf16']))
    assert other['top1'] == plain['top1'] and other['loss'] == pytest.approx(plain['loss'], rel=1e-5)
    assert short['precision'] == 'bfloat16' and short['loss'] != plain['loss']
    assert short['loss'] == pytest.approx(plain['loss'], rel=0.05)


# -- robustness ------------------------------------------------------------------------------------------------------
def test_robustness_of_the_weights_that_ship(run: Run, tmp_path: Path) -> None:
    """Tables, JSON and the picture, on the first 40 digits."""
    digits = pytest.importorskip('sklearn.datasets').load_digits()
    images, labels = (digits.images[:40] * 15.9).astype(np.uint8), digits.target[:40]
    np.savez(tmp_path / 'd.npz', train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    command = ('cct_2_3x2.digits', '--data', f'npz:{tmp_path / "d.npz"}', '--attack', 'fgsm', '--radius', 0, 64)
    out = run(*command, '--corruptions', '--plot', tmp_path / 'a.png')
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert all(len(lines[name]) == 8 for name in CORRUPTIONS)
    rows = np.array([[float(cell) for cell in lines[name][2:]] for name in CORRUPTIONS])
    np.testing.assert_allclose(rows[:, :5].mean(1), rows[:, 5], atol=0.011)
    mean = next(line.split()[-1] for line in out.splitlines() if line.startswith('mean of the fifteen'))
    assert float(mean) == pytest.approx(rows[:, 5].mean(), abs=0.011)
    assert rows[:, 4].mean() > rows[:, 0].mean() + 5
    assert 'not the official set' in out and 'FGSM' in out and (tmp_path / 'a.png').stat().st_size > 20_000
    record = json.loads(run(*command, '--json'))[0]
    assert record['attack']['top1s'][0] == record['top1'] > record['attack']['top1s'][1]


@pytest.mark.parametrize('argv, expected', [
    (['--radius', '8'], 'give --attack pgd'),
    (['--attack', 'fgsm', '--steps', '3'], 'fgsm takes one'),
    (['--attack', 'pgd', '--steps', '0'], 'steps is 0'),
    (['--attack', 'pgd', '--radius', '-1'], 'radius is -1'),
    (['--attack', 'pgd', '--radius', 'nan'], 'radius is nan'),
    (['--attack', 'cw'], "'cw'"),
    (['--plot', 'a.png'], 'give one of them'),
    (['--corruptions', '--plot', 'a.bmp'], 'a.bmp'),
    (['--corruptions', '--plot', '/no/such/a.png'], '/no/such'),
    (['--corruptions', '/no/such'], '/no/such/labels.npy'),
    (['--corruptions', '--device', 'cuda:77'], 'cuda:77'),
])
def test_mistakes_about_robustness_are_one_line(trained: Path, data: str, refused: Run, argv: list[str],
                                                expected: str) -> None:
    assert expected in refused(trained, '--data', data, *argv)


# -- mistakes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('argv, expected', [
    (['cct_2_3x3'], "There is no model 'cct_2_3x3', in the zoo or in timm. Did you mean cct_2_3x2"),
    (['resnet81'], "Did you mean resnet1"),
    (['cct_2_3x2.nothing'], "cct_2_3x2 has no weights 'nothing'"),
    (['resnet18.nothing'], "resnet18 has no weights 'nothing'"),
    (['cvt_2_4'], 'There are no weights of cvt_2_4: give cvt_2_4=FILE, or cvt_2_4.untrained'),
    (['runs/nothing'], 'There is no file or run directory runs/nothing'),
    (['nothing.safetensors'], 'There is no file or run directory nothing.safetensors'),
    (['cct_2_3x2=nothing.pth'], 'There is no weights file nothing.pth'),
    ([], 'Give either MODEL... or --all'),
    (['resnet18', '--all'], 'Give either MODEL... or --all'),
    (['--all', '--knn'], '--all only compares the test accuracy'),
    (['resnet18', '--batch-size', '0'], "--batch-size: '0' is not a whole number"),
    (['resnet18', '--split', 'val'], 'has no val images, but train and test: evaluate on the split test'),
    (['cct_2_3x2.untrained', '--split', 'train', '--knn'], '--knn and --probe train on the training images'),
    (['cct_2_3x2.untrained', '--fraction', '0.5'], '--fraction is for --knn'),
    (['cct_2_3x2.untrained'], 'cct_2_3x2.untrained has 10 classes, images has 4'),
    (['mae_vit_c10.untrained', '--img-size', '1'], 'this model needs at least 3 x 3'),
    (['a', 'b', '--confusion', 'c.png'], '--confusion plots one model'),
    (['a', '--confusion', 'c.bmp'], 'expected a name that ends in .png'),
    (['a', '--confusion', '/nowhere/c.png'], 'there is no folder /nowhere'),
    (['resnet18', '--precision', 'fp16'], 'precision fp16 is a thousand times slower'),
])
def test_mistakes_are_one_line(data: str, refused: Run, argv: list[str], expected: str) -> None:
    assert expected in refused(*argv, '--data', data)


@pytest.mark.parametrize('spec, expected', [
    ('c11=npz:x', "There is no data set 'c11'"), ('c10={data}', 'has 4 classes, CIFAR-10 has 10'),
    ('npz:nothing.npz', 'There is no file nothing.npz')])
def test_mistakes_in_the_data(data: str, refused: Run, spec: str, expected: str) -> None:
    assert expected in refused('cct_2_3x2.untrained', '--data', spec.format(data=data))


def test_weights_of_other_classes_are_not_counted(refused: Run) -> None:
    """As many classes, but not one of the same name."""
    pytest.importorskip('sklearn')
    assert 'has other classes (airplane, automobile, ...) than digits (0, 1, ...)' in refused(
        'cct_2_3x2.c10', '--data', 'digits')


def test_too_little_memory_is_one_line(data: str, trained: Path, refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate')

    monkeypatch.setattr('tinyvit_zoo.cli.eval.outputs', fail)
    assert 'cpu is out of memory: use a smaller --batch-size' in refused(trained, '--data', data)


def test_weights_of_timm_without_a_network_are_one_line(
        data: str, refused: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    assert 'resnet10t.c3_in1k cannot be loaded' in refused('resnet10t.c3_in1k', '--data', data)


def test_all_wants_to_know_which_data_set_it_is(data: str, refused: Run) -> None:
    assert 'write KEY=npz:' in refused('--all', '--data', data)


def test_files_that_are_not_what_they_should_be(data: str, trained: Path, refused: Run, tmp_path: Path) -> None:
    file, unnamed = trained / 'weights.safetensors', tmp_path / 'unnamed.safetensors'
    save_weights({'x': torch.zeros(1)}, unnamed)
    assert 'does not name its model: write NAME=' in refused(unnamed, '--data', data)
    assert 'do not fit' in refused(f'cct_4_3x2={file}', '--data', data)
    assert 'resnet18 cannot be loaded from' in refused(f'resnet18={file}', '--data', data)
    (tmp_path / 'cut.safetensors').write_bytes(file.read_bytes()[:5000])
    assert 'damaged' in refused(f'cct_2_3x2={tmp_path / "cut.safetensors"}', '--data', data)
    (tmp_path / 'begun').mkdir()
    assert 'is not a run directory' in refused(tmp_path / 'begun', '--data', data)
    (tmp_path / 'begun' / 'recipe.json').write_text((trained / 'recipe.json').read_text())
    assert 'an unfinished run' in refused(tmp_path / 'begun', '--data', data)


# -- views at test time ------------------------------------------------------------------------------------------------
def test_views_are_reported_apart(data: str, trained: Path, run: Run, refused: Run) -> None:
    plain, = json.loads(run(trained, '--data', data, '--json'))
    record, = json.loads(run(trained, '--data', data, '--json', '--tta', 'flip+shift'))
    assert record['top1'] == plain['top1'] and record['tta']['images'] == plain['images']
    assert record['tta']['views'] == 'flip+shift' and record['tta']['loss'] != plain['loss']
    assert f'  views     {record["tta"]["top1"]:.2f} %' in run(trained, '--data', data, '--tta', 'flip+shift')
    assert 'must not be mirrored: use --tta shift' in refused('cct_2_3x2.digits', '--data', 'digits', '--tta', 'flip')


def test_a_figure_that_is_not_defined_has_a_dash(trained: Path, data: str, run: Run, tmp_path: Path) -> None:
    """All test images are of one class."""
    arrays = dict(np.load(data.removeprefix('npz:')))
    first = arrays['test_labels'] == 0
    np.savez(tmp_path / 'a.npz', **{**arrays, 'test_images': arrays['test_images'][first],
                                    'test_labels': arrays['test_labels'][first]})
    out = run(trained, '--data', f'npz:{tmp_path / "a.npz"}', '--per-class')
    assert 'AUROC     -, needs images of two classes' in out and '  AP ' in out
