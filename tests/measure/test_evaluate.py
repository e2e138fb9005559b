"""`tinyvit-zoo eval`: its figures are right, a mistake is one line, and a catalogue that is wrong is found out."""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from training_cases import run as run_training, write_npz

import tinyvit_zoo
from tinyvit_zoo.cli import eval as eval_command
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.measure import accuracy as accuracy_module, catalogue_check, confusion
from tinyvit_zoo.measure.accuracy import accuracy, wilson
from tinyvit_zoo.measure.bench import Bench
from tinyvit_zoo.measure.confusion import plot_confusion
from tinyvit_zoo.runtime.picture import write_picture
from tinyvit_zoo.runtime.world import World
from tinyvit_zoo.weights import Weight, save_weights
from tinyvit_zoo.weights.resolve import Loaded

ALONE = World(0, 1, torch.device('cpu'))
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `tinyvit-zoo eval`, which has to succeed, and returns what it printed."""
    def run_command(*argv: object) -> str:
        assert main(['eval', *map(str, argv), '--device', 'cpu']) == 0
        return capsys.readouterr().out
    return run_command


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs it, which has to fail as mistakes do, and returns the one line."""
    def run_command(*argv: object) -> str:
        try:
            code = main(['eval', *map(str, argv), '--device', 'cpu'])
        except SystemExit as e:
            code = e.code
        out, err = capsys.readouterr()
        assert code == 2 and out == '' and err.count('\n') == 1 and err.startswith('tinyvit-zoo: ')
        return err
    return run_command


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_npz(tmp_path_factory.mktemp('data') / 'images.npz')


@pytest.fixture(scope='module')
def trained(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp('run') / 'trained'
    assert run_training(data, output) == 0
    return output


# -- made-up logits --------------------------------------------------------------------------------------------------
class Oracle(nn.Module):
    """Its logits for the i-th class-coloured image are written down beforehand; which image it is the pixels say."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.num_classes, self.pretrained_cfg = logits, logits.shape[1], {}

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[(x[:, 0, 0, 0] * 255).round().long()]


def bench(tmp_path: Path, logits: Tensor, labels: list[int]) -> Bench:
    count, classes = logits.shape
    test = np.arange(count, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / 'made.npz', train_images=np.zeros((classes, 4, 4), np.uint8), train_labels=np.arange(classes),
             test_images=test, test_labels=np.array(labels))
    cfg = {'input_size': (3, 4, 4), 'mean': (0.,) * 3, 'std': (1.,) * 3, 'crop_pct': 1., 'interpolation': 'bicubic'}
    return Bench(Loaded('oracle', Oracle(logits), cfg), open_source(f'npz:{tmp_path / "made.npz"}'), 'test', ALONE,
                 batch_size=3)


def test_figures_of_made_up_logits(tmp_path: Path) -> None:
    """Eight images of seven classes, in three batches."""
    guesses = [0, 0, 1, 1, 2, 2, 3, 4]
    labels = [0, 0, 0, 1, 2, 1, 6, 5]
    logits = torch.zeros(8, 7)
    logits[range(8), guesses] = 5.
    logits[6] = torch.tensor([4., 3., 2., 5., 1., -1., 0.])        # its class, 6, is the sixth best
    logits[7] = torch.tensor([4., 3., 2., 1., 5., 4.5, 0.])        # its class, 5, is the second best
    found = accuracy(bench(tmp_path, logits, labels))
    assert found['images'] == 8 and found['top1'] == pytest.approx(50.)
    hits = sum(label in logits[i].topk(5).indices.tolist() for i, label in enumerate(labels))
    assert found['top5'] == pytest.approx(100 * hits / 8) and 4 < hits < 8
    assert found['loss'] == pytest.approx(nn.functional.cross_entropy(logits, torch.tensor(labels)).item())
    expected = np.zeros((7, 7), int)
    np.add.at(expected, (labels, guesses), 1)
    assert np.array_equal(found['confusion'], expected)
    rows = found['classes']
    assert [(r['class'], r['images'], r['correct']) for r in rows[:3]] == [('0', 3, 2), ('1', 2, 1), ('2', 1, 1)]
    assert rows[0]['top1'] == pytest.approx(200 / 3) and (rows[0]['most_taken_for'], rows[0]['times']) == ('1', 1)
    assert rows[2]['most_taken_for'] is None and rows[2]['times'] == 0
    assert rows[3]['images'] == 0 and rows[3]['top1'] is None and rows[3]['interval'] is None


def test_a_model_that_is_always_right_or_wrong(tmp_path: Path) -> None:
    labels = [0, 1, 2, 0, 1]
    right = accuracy(bench(tmp_path, 9 * torch.eye(3)[labels], labels))
    wrong = accuracy(bench(tmp_path, -9 * torch.eye(3)[labels], labels))
    assert (right['top1'], wrong['top1']) == (100., 0.) and 'top5' not in right
    assert right['interval'][1] == 100. and wrong['interval'][0] == 0.
    assert right['interval'][0] == pytest.approx(100 - wrong['interval'][1])


@pytest.mark.parametrize('correct, count, expected', [
    (95, 100, (88.825, 97.846)), (0, 10, (0., 27.754)), (10, 10, (72.246, 100.)), (5000, 10000, (49.020, 50.980))])
def test_wilson(correct: int, count: int, expected: tuple[float, float]) -> None:
    assert wilson(correct, count) == pytest.approx(expected, abs=2e-3)


def test_wilson_against_its_equation() -> None:
    """The ends are the shares p from which the share found is 1.96 deviations of p away."""
    for correct, count in ((3, 17), (160, 171), (9912, 10000)):
        for end in wilson(correct, count):
            p = end / 100
            assert abs(correct / count - p) == pytest.approx(1.959964 * (p * (1 - p) / count) ** 0.5, rel=1e-6)


# -- the weight's own preprocessing ----------------------------------------------------------------------------------
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


# -- end to end ------------------------------------------------------------------------------------------------------
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
    assert out.splitlines()[-4:][0].split()[:2] == ['0', '6']
    monkeypatch.setattr(Bench, 'class_names', ['red', 'green', 'blue', 'grey'])
    assert 'green' in run(trained, '--data', data, '--per-class')


def test_number_format_and_batch_size_change_little(data: str, trained: Path, run: Run) -> None:
    plain, other, short = (json.loads(run(trained, '--data', data, '--json', *more))[0] for more in (
        [], ['--batch-size', '5'], ['--precision', 'bf16']))
    assert other['top1'] == plain['top1'] and other['loss'] == pytest.approx(plain['loss'], rel=1e-5)
    assert short['precision'] == 'bfloat16' and short['loss'] != plain['loss']
    assert short['loss'] == pytest.approx(plain['loss'], rel=0.05)


# -- the picture -----------------------------------------------------------------------------------------------------
def test_picture_shows_shares_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(confusion, 'write_picture', lambda *args: figures.append(args[0]) or write_picture(*args))
    plot_confusion([[3, 1, 0], [0, 5, 5], [0, 0, 0]], ['a', 'b', 'c'], 'title', tmp_path / 'm.svg')
    axes = figures[0].axes[0]
    assert np.allclose(axes.images[0].get_array(), [[75, 25, 0], [0, 50, 50], [0, 0, 0]])
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {
        ((0, 0), '75.0'), ((1, 0), '25.0'), ((1, 1), '50.0'), ((2, 1), '50.0')}
    assert [t.get_text() for t in axes.get_yticklabels()] == ['a', 'b', 'c'] and axes.get_title() == 'title'
    assert (tmp_path / 'm.svg').read_text().startswith('<?xml') and len(list(tmp_path.iterdir())) == 1


def test_names_of_a_hundred_classes_do_not_touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(confusion, 'write_picture', lambda *args: figures.append(args[0]) or write_picture(*args))
    plot_confusion(np.eye(100, dtype=int), [f'class {i}' for i in range(100)], '', tmp_path / 'm.png')
    boxes = [label.get_window_extent() for label in figures[0].axes[0].get_yticklabels()]
    assert len(boxes) == 100 and boxes[0].height > 6
    gaps = [above.y0 - below.y1 for above, below in pairwise(boxes)]
    assert min(gaps) > -1       # pixels


# -- the catalogue ---------------------------------------------------------------------------------------------------
def entry(name: str, dataset: str, top1: float | None, **more: Any) -> Weight:
    measured = None if top1 is None else {'top1': top1, 'on': 'test', 'date': '2026-01-01', 'command': 'x'}
    return Weight(name=name, dataset=dataset, input_size=(3, 32, 32), crop_pct=1., origin='us', recipe='r', url='u',
                  measured=measured, **more)


def check_all(
        weights: list[Weight], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, top1: float, as_json: bool) -> str:
    """--all with 200 images, of which `top1` percent are told rightly, by every weight."""
    monkeypatch.setattr(catalogue_check, 'catalogue', lambda: {w.name: w for w in weights})
    labels = (np.arange(200) % 10).tolist()
    logits = torch.eye(10)[labels]
    logits[round(2 * top1):] = logits[round(2 * top1):].roll(1, 1)
    made = bench(tmp_path, logits, labels)

    def make(name: str, source: Any) -> Bench:
        if 'lost' in name:
            raise tinyvit_zoo.errors.ZooError('No network.')
        return made

    args = argparse.Namespace(data=[f'c10=npz:{tmp_path / "made.npz"}'], download=False, json=as_json)
    bench(tmp_path, logits, labels)
    return eval_command._check_catalogue(args, make)


def test_all_weights_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rounded as shown. Other data sets and encoders are not looked at; what cannot be had is said, not failed."""
    weights = [entry('m.a', 'c10', 80.499), entry('m.b', 'c10', None), entry('m.c', 'c100', 1.), entry(
        'm.d', 'c10', None, encoder=True), entry('m.lost', 'c10', 90.)]
    text = check_all(weights, monkeypatch, tmp_path, 80.5, False)
    lines = text.splitlines()
    assert lines[1].split() == ['m.a', 'made', '80.50', '80.50', 'agrees']
    assert lines[2].split() == ['m.b', 'made', '-', '80.50', 'no', 'figure']
    assert lines[3].split() == ['m.lost', 'made', '90.00', '-', 'not', 'to', 'be', 'had'] and 'm.c' not in text
    assert lines[5] == 'agrees: 1, no figure: 1, not to be had: 1' and lines[6] == 'm.lost: No network.'


def test_a_wrong_figure_is_exit_code_1(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = [entry('m.a', 'c10', 80.5), entry('m.b', 'c10', 80.51), entry('m.c', 'c10', 80.5)]
    weights[2].measured['loss'] = 3.
    with pytest.raises(SystemExit) as error:
        check_all(weights, monkeypatch, tmp_path, 80.5, True)
    rows = json.loads(capsys.readouterr().out)
    assert error.value.code == 1 and [row['outcome'] for row in rows] == ['agrees', 'DIFFERS', 'DIFFERS']
    assert rows[1]['catalogue'] == {'top1': 80.51} and rows[1]['now']['top1'] == pytest.approx(80.5)
    assert [row['differs'] for row in rows] == [[], ['top1'], ['loss']]
    with pytest.raises(SystemExit):
        check_all(weights[1:], monkeypatch, tmp_path, 80.5, False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ['m.b', 'made', '80.51', '80.50', 'DIFFERS'] and lines[4] == 'DIFFERS: 2'
    assert lines[2].endswith(f'80.50  DIFFERS: loss 3.0000 is now {rows[2]["now"]["loss"]:.4f}')


def test_a_weight_that_ships_has_to_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(tinyvit_zoo.errors.ZooError, match='No network'):
        check_all([entry('m.lost', 'c10', 80.5, file='f')], monkeypatch, tmp_path, 80.5, False)


def test_what_cannot_be_had_is_told_in_few_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = check_all([entry(f'm.lost{i}', 'c10', None) for i in range(5)], monkeypatch, tmp_path, 80.5, False)
    assert text.splitlines()[-1] == 'And 3 more: --json has all.' and text.count('No network') == 2


def test_no_weight_for_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(tinyvit_zoo.errors.ZooError, match='no weight with classes for c10: it has some for c100'):
        check_all([entry('m.c', 'c100', 1.)], monkeypatch, tmp_path, 80.5, False)


# -- mistakes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('argv, expected', [
    (['cct_2_3x3'], "There is no model 'cct_2_3x3', in the zoo or in timm. Did you mean cct_2_3x2"),
    (['resnet81'], "Did you mean resnet1"),
    (['cct_2_3x2.nothing'], "cct_2_3x2 has no weights 'nothing'"),
    (['resnet18.nothing'], "resnet18 has no weights 'nothing'"),
    (['cvt_2_4'], 'There are no weights of cvt_2_4: give cvt_2_4=FILE, or cvt_2_4.untrained'),
    (['runs/nothing'], 'There is no file or run directory runs/nothing'),
    (['nothing.safetensors'], 'There is no file or run directory nothing.safetensors'),
    (['cct_2_3x2=nothing.pth'], 'There is no weights file nothing.pth'),
    ([], 'Give MODEL... or --all'),
    (['resnet18', '--all'], 'Give MODEL... or --all'),
    (['--all', '--knn'], '--all compares the test accuracy'),
    (['resnet18', '--batch-size', '0'], '--batch-size is 0, expected a number from 1 up'),
    (['resnet18', '--split', 'val'], 'has no val images, but train and test: give --split test'),
    (['cct_2_3x2.untrained', '--split', 'train', '--knn'], '--knn and --probe learn from the training images'),
    (['cct_2_3x2.untrained', '--fraction', '0.5'], '--fraction is of the training images'),
    (['cct_2_3x2.untrained'], 'cct_2_3x2.untrained has 10 classes, images has 4'),
    (['mae_vit_c10.untrained', '--img-size', '1'], 'this model takes 3 x 3 pixels and more'),
    (['a', 'b', '--confusion', 'c.png'], '--confusion draws one model'),
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
    assert 'tells other classes apart (airplane, automobile, ...) than digits has (0, 1, ...)' in refused(
        'cct_2_3x2.c10', '--data', 'digits')


def test_too_little_memory_is_one_line(data: str, trained: Path, refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate')

    monkeypatch.setattr(accuracy_module, 'accuracy', fail)
    assert 'The memory of cpu is too small: take a smaller --batch-size' in refused(trained, '--data', data)


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
    assert 'does not say whose weights it holds: write NAME=' in refused(unnamed, '--data', data)
    assert 'do not fit' in refused(f'cct_4_3x2={file}', '--data', data)
    assert 'resnet18 cannot be loaded from' in refused(f'resnet18={file}', '--data', data)
    (tmp_path / 'cut.safetensors').write_bytes(file.read_bytes()[:5000])
    assert 'damaged' in refused(f'cct_2_3x2={tmp_path / "cut.safetensors"}', '--data', data)
    (tmp_path / 'begun').mkdir()
    assert 'is no run directory' in refused(tmp_path / 'begun', '--data', data)
    (tmp_path / 'begun' / 'recipe.json').write_text((trained / 'recipe.json').read_text())
    assert 'a run that has not ended' in refused(tmp_path / 'begun', '--data', data)
