"""A training in a given time: the epochs that fit, and the bits of a run that was given them."""
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
from forked import Server
from training_cases import SETTINGS, assert_same_bits, write_npz

from tinyvit_zoo.cli.main import main
from tinyvit_zoo.measure.counting import count
from tinyvit_zoo.recipes import RECIPES
from tinyvit_zoo.training import budget
from tinyvit_zoo.training.budget import Pace, fit_epochs

SLOW = '0.4'      # minutes, for `slow_steps`
PLAIN = ['--device', 'cpu', '--precision', 'fp32']
TRAIN = ['train', '--model', 'cct_2_3x2', '--from-weights', '', '--layer-decay', '1', *PLAIN, *SETTINGS[2:]]
PRETRAIN = ['pretrain', 'mae_small', '--model', 'vit_lite_2_4', '--img-size', '16', '--batch-size', '16', *PLAIN,
            '--model-args', "{'embed_dim': 32}", '--method-args', "{'decoder_dim': 24}"]


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ['--data', write_npz(tmp_path_factory.mktemp('data') / 'images.npz')]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, '_SECONDS', 0.1)


def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps of a second make an epoch, for a clock that stands still for all the rest."""
    now, timed, second = time.monotonic(), budget._seconds_a_step, 1. + int(os.environ.get('RANK', '0'))
    monkeypatch.setattr(budget, 'time', SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(budget, '_seconds_a_step', lambda loop, least: timed(loop, 0.) + second)
    monkeypatch.setattr(budget, '_STEPS', 3)


def _recipe(folder: Path) -> dict:
    return json.loads((folder / 'recipe.json').read_text())['recipe']


def test_the_most_epochs_that_fit() -> None:
    recipe, given = RECIPES['cct_7_3x1.c10_300e'], {'warmup_epochs': 0.5}
    fitting = fit_epochs(recipe, given, lambda r: 2. * r.total_epochs, 62.)     # a thirtieth of the epochs cools down
    assert fitting is not None and (fitting.epochs, fitting.cooldown_epochs, fitting.mix_off_epoch) == (30, 1, 18)
    assert fitting.warmup_epochs == 0.5 and fit_epochs(recipe, {}, lambda r: 2. * r.epochs, 1.9) is None


def test_an_estimate() -> None:
    pace = Pace(step=0.1, once=5., evaluation=2., checkpoint=1.)
    assert pace.seconds(10, 100, 1, 1e9) == pytest.approx(5 + 100 + 10 * 2 + 1)
    assert pace.seconds(41, 100, 2, 2.) == pytest.approx(5 + 410 + 21 * 2 + 1 + 452 / 120)
    assert pace.seconds(10, 100, 5, 0.) == pytest.approx(5 + 100 + 2 * 2 + 1 + 1040)           # a checkpoint a step


@pytest.mark.parametrize('command', [[*TRAIN, '--loader', 'stream', '--workers', '0'], PRETRAIN],
                         ids=['train', 'pretrain'])
def test_minutes_choose_epochs_that_repeat_the_run(
        data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
        command: list[str]) -> None:
    """Speed is measured in steps that leave no trace; a resumed run keeps its epochs."""
    slow_steps(monkeypatch)
    timed = [*command, *data, '--output', str(tmp_path / 'timed')]
    for left in ('.lock', '.partial-speed/recipe.json'):    # by a kill while it measured
        (tmp_path / 'timed' / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'timed' / left).touch()
    assert main([*timed, '--minutes', SLOW]) == 0
    recipe = _recipe(tmp_path / 'timed')
    assert recipe['epochs'] == 4
    assert f'--epochs {recipe["epochs"]} repeats this run' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ['timed']
    assert not list((tmp_path / 'timed').glob('.partial*'))
    assert main([*command, *data, '--output', str(tmp_path / 'again'), '--epochs', str(recipe['epochs'])]) == 0
    assert _recipe(tmp_path / 'again') == recipe
    assert_same_bits(tmp_path / 'timed', tmp_path / 'again')
    assert main([*timed, '--minutes', '9', '--resume']) == 0 and _recipe(tmp_path / 'timed') == recipe


def test_pflop_choose_epochs(data: list[str], tmp_path: Path) -> None:
    """96 images of 16 pixels; the run's card and result say what they cost."""
    macs = count(timm.create_model('cct_2_3x2', num_classes=4, img_size=16, device='meta')).macs
    limit = 3.5 * 96 * 6 * macs / 1e15
    assert main([*TRAIN, *data, '--output', str(tmp_path / 'run'), '--warmup-epochs', '0.3',
                 '--pflop', str(limit)]) == 0
    recipe, result = _recipe(tmp_path / 'run'), json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert recipe['epochs'] == 3 and recipe['warmup_epochs'] == 0.3
    assert result['pflop'] == pytest.approx(3 * 96 * 6 * macs / 1e15, rel=1e-3)
    assert f'{result["pflop"]:g} PFLOP' in (tmp_path / 'run' / 'card.md').read_text()


@pytest.mark.parametrize(('more', 'message'), [
    (['--minutes', '0'], 'not a number above 0'), (['--minutes', 'ten'], 'not a number above 0'),
    (['--minutes', '1', '--epochs', '3'], 'minutes, pflop and epochs all set the epochs'),
    (['--pflop', '1', '--minutes', '1'], 'not allowed with'), (['--pflop', '-1'], 'not a number above 0'),
    (['--pflop', '1', '--epochs', '3'], 'minutes, pflop and epochs all set the epochs'),
    (['--pflop', '1e-9'], 'pflop 1e-09 is too little: one epoch takes '),
    (['--minutes', '0.0001'], 'too short: one epoch takes'), (['--minutes', '1e6'], 'at most 50,000'),
    (['--pflop', '1e300'], 'epochs, expected a whole number from 1 to 1,000,000'),
])
def test_bad_input_is_one_line_and_leaves_nothing(
        data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert main([*TRAIN, *data, '--output', str(tmp_path / 'new' / 'run'), *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1 and not list(tmp_path.iterdir())


def test_a_chain_takes_no_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['train', 'mae_vit_c10.c10_100e', '--data', 'digits', '--minutes', '9']) == 2
    assert 'starts with the pre-training mae_vit_c10.c10_mae' in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_agree_on_the_epochs(data: list[str], server: Server, tmp_path: Path) -> None:
    """Although steps take twice as long in the second."""
    server.run_two([__file__, *TRAIN, *data, '--output', str(tmp_path / 'run'), '--minutes', SLOW], tmp_path / 'run')
    assert _recipe(tmp_path / 'run')['epochs'] == 4


if __name__ == '__main__':
    slow_steps(pytest.MonkeyPatch())
    sys.exit(main(sys.argv[1:]))
