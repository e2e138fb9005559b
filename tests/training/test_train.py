"""The training loop: reproducible to the bit, through kills and resumes; faults are named; many processes agree."""
import json
import math
import os
import random
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import timm
import torch
from forked import Server
from PIL import Image
from timm.scheduler import CosineLRScheduler
from torch import nn
from training_cases import (
    assert_same_bits,
    read_checkpoint,
    run,
    stop_at,
    torchrun,
    training,
    weights,
    write_npz,
)

import tinyvit_zoo as zoo
from tinyvit_zoo.augment import spec
from tinyvit_zoo.augment.spec import AugmentSpec
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.errors import ZooError
from tinyvit_zoo.methods.joint import average_
from tinyvit_zoo.methods.supervised import Supervised
from tinyvit_zoo.recipes import PRETRAININGS, RECIPES, Recipe
from tinyvit_zoo.runtime.files import user_path
from tinyvit_zoo.runtime.lock import lock, unlock
from tinyvit_zoo.runtime.world import World, autocast_dtype
from tinyvit_zoo.training import loop, run_dir
from tinyvit_zoo.training.optimizer import clip_gradients, learning_rate, make_optimizer
from tinyvit_zoo.training.train import check_recipe
from tinyvit_zoo.weights import trained
from tinyvit_zoo.weights.files import convert, read_metadata, read_weights, save_weights
from tinyvit_zoo.weights.readout import Readout, write_readout
from tinyvit_zoo.weights.resolve import resolve
from tinyvit_zoo.weights.trained import trained_on

# nothing random; and SGD, since Adam turns the rounding errors of a gradient that is 0 into steps
PLAIN = ['--opt', 'sgd', '--epochs', '2', '--flip', '0', '--crop-padding', '0', '--mixup', '0', '--cutmix', '0',
         '--erase', '0', '--mix-off-epoch', '0', '--model-args', "{'attn_drop_rate': 0., 'drop_path_rate': 0.}"]


@pytest.fixture(scope='module')
def finished(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    output = tmp_path_factory.mktemp('run') / 'whole'
    assert run(data, output) == 0
    return output


@pytest.fixture(autouse=True)
def _threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# -- the run directory -----------------------------------------------------------------------------------------------
def test_what_a_run_leaves(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = {path.name for path in finished.iterdir()}
    assert left >= {
        'recipe.json', 'log.jsonl', 'train.log', 'curves.png', 'weights.safetensors', 'result.json', 'card.md'}
    assert len(run_dir.checkpoints(finished)) <= 2
    rows = [json.loads(line) for line in (finished / 'log.jsonl').read_text().splitlines()]
    assert [row['epoch'] for row in rows] == [1, 2, 3] and [row['step'] for row in rows] == [6, 12, 18]
    assert rows[-1]['train_loss'] < rows[0]['train_loss']
    facts = json.loads((finished / 'recipe.json').read_text())
    assert facts['recipe']['lr'] == 2e-3 and facts['machine']['torch'] == torch.__version__
    command = json.loads((finished / 'result.json').read_text())['command']  # as it was given
    assert command.startswith('tinyvit-zoo train --model cct_2_3x2 --data') and '--epochs 3' in command
    assert command in (finished / 'card.md').read_text()


def test_a_changed_recipe_is_not_described_as_the_one_it_was(tmp_path: Path) -> None:
    """Its card says the changes, and how to load what has another structure; classes are those of the images."""
    assert main(['train', 'cct_2_3x2.c10', '--data', 'digits', '--output', str(tmp_path / 'run'), '--precision', 'fp32',
                 '--img-size', '8', '--epochs', '1', '--batch-size', '256',
                 '--model-args', "{'pos_embed': 'none'}"]) == 0
    card = (tmp_path / 'run' / 'card.md').read_text()
    assert 'epochs 64 -> 1' in card and 'images c10 -> digits' in card and 'an hour' not in card
    snippet = card.partition('```python')[2].partition('```')[0]
    namespace: dict = {}
    exec(snippet.replace("'weights.safetensors'", repr(str(tmp_path / 'run' / 'weights.safetensors'))), namespace)
    assert namespace['model'].pos_embed is None
    assert namespace['model'].pretrained_cfg['label_names'] == [str(i) for i in range(10)]


@torch.no_grad()
def test_the_weights_load_by_file_alone_and_are_what_was_measured(data: str, finished: Path) -> None:
    """Classes, size and normalisation are in the file."""
    model = timm.create_model(
        'cct_2_3x2', pretrained=True, pretrained_cfg_overlay=dict(file=str(finished / 'weights.safetensors'))).eval()
    assert model.num_classes == 4 and model.img_size == (16, 16)
    cfg = model.pretrained_cfg
    arrays = np.load(data.removeprefix('npz:'))
    x = torch.from_numpy(arrays['test_images']).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(cfg['mean'])[:, None, None]) / torch.tensor(cfg['std'])[:, None, None]
    top1 = 100 * (model(x).argmax(1) == torch.from_numpy(arrays['test_labels'])).double().mean().item()
    result = json.loads((finished / 'result.json').read_text())
    assert result['figures']['test']['top1'] == pytest.approx(top1)
    assert f'{top1:.2f}' in (finished / 'card.md').read_text()


def test_same_seed_same_bits_other_seed_other_bits(data: str, finished: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path / 'again') == 0
    assert (finished / 'weights.safetensors').read_bytes() == (tmp_path / 'again' / 'weights.safetensors').read_bytes()
    assert run(data, tmp_path / 'other', '--seed', '1') == 0
    assert not torch.equal(weights(finished)['head.weight'], weights(tmp_path / 'other')['head.weight'])


# -- kills and resumes -----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_killed_many_times_it_ends_with_the_same_bits(
        data: str, finished: Path, server: Server, tmp_path: Path) -> None:
    output, luck, kills, seen = tmp_path / 'killed', random.Random(0), 0, set()
    command = training(data, output, '--resume', '--checkpoint-minutes', '0')
    while not (output / 'result.json').exists():
        before, begun, child = _newest(output), time.monotonic(), server.start(command, output)
        while _newest(output) == before and not (output / 'result.json').exists() and time.monotonic() - begun < 60:
            time.sleep(0.001)  # until it has saved once more: each round gets on
        time.sleep(luck.random() * 0.05)
        if kills < 6:
            os.kill(child, signal.SIGKILL)
        kills += server.wait(child)[0] == -signal.SIGKILL
        seen.add(_newest(output))
    assert kills >= 5 and len(seen) >= 4  # it was stopped at many places
    assert_same_bits(finished, output)
    strip = [{k: v for k, v in row.items() if 'second' not in k} for row in _rows(output)]
    assert strip == [{k: v for k, v in row.items() if 'second' not in k} for row in _rows(finished)]


def _newest(output: Path) -> str:
    found = run_dir.checkpoints(output)
    return found[-1].name if found else ''


def _rows(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / 'log.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('number, step', [(signal.SIGTERM, 8), (signal.SIGINT, 12)])
def test_a_signal_writes_a_checkpoint(
        data: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: int) -> None:
    """In the middle of an epoch and at its end; resumed, the bits are those of a whole run."""
    output = tmp_path / 'stopped'
    with monkeypatch.context() as patched:
        stop_at(patched, step, number)
        assert run(data, output) == 128 + number
    assert _newest(output) == f'checkpoint-{step:08d}.pt'
    assert run(data, output, '--resume') == 0
    assert_same_bits(finished, output)


@pytest.fixture
def stopped(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with two checkpoints, stopped at step 8."""
    with monkeypatch.context() as patched:
        stop_at(patched, 8, signal.SIGTERM)
        assert run(data, tmp_path / 'run', '--checkpoint-minutes', '0') == 128 + signal.SIGTERM
    assert len(run_dir.checkpoints(tmp_path / 'run')) == 2
    return tmp_path / 'run'


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty', 'pipe'])
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(
        data: str, finished: Path, stopped: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    newest = run_dir.checkpoints(stopped)[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == 'pipe':
        newest.unlink()
        os.mkfifo(newest)
    else:
        newest.write_bytes({'flip': bytes(content), 'cut': bytes(content[:len(content) // 2]), 'empty': b''}[damage])
    assert run(data, stopped, '--resume') == 0
    assert f'{newest} is damaged' in capsys.readouterr().out
    assert_same_bits(finished, stopped)


def test_all_checkpoints_damaged(data: str, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run_dir.checkpoints(stopped):
        path.write_bytes(b'nothing')
    assert run(data, stopped, '--resume') == 2
    assert 'No checkpoint' in capsys.readouterr().err


@pytest.mark.parametrize('options', [
    ['--seed', '1'], ['--model', 'vit_lite_2_4'], ['--opt', 'sgd'], ['--weight-decay', '0'], ['--ema', '0']])
def test_a_checkpoint_of_another_run_is_refused(
        data: str, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    """Also without the digest, which earlier versions did not write, where anything in it does not fit."""
    assert run(data, tmp_path / 'other', *options) == 0
    newest, = run_dir.checkpoints(tmp_path / 'other')
    shutil.copy(newest, stopped)
    assert run(data, stopped, '--resume') == 2
    assert f'{stopped / newest.name} is a checkpoint of another run: remove it' in capsys.readouterr().err
    state = read_checkpoint(newest)
    del state['run']
    run_dir.save_checkpoint(stopped, state['step'], state)
    if options[0] in ('--model', '--weight-decay', '--ema'):
        assert run(data, stopped, '--resume') == 2
        error = capsys.readouterr().err
        assert 'is of another run (' in error and 'remove it' in error and error.count('\n') == 1
    (stopped / newest.name).unlink()
    assert run(data, stopped, '--resume') == 0


def test_resumed_without_a_checkpoint_it_begins_anew(
        data: str, finished: Path, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run_dir.checkpoints(stopped):
        path.unlink()
    assert run(data, stopped, '--resume') == 0
    assert 'No checkpoint yet' in capsys.readouterr().out and [row['epoch'] for row in _rows(stopped)] == [1, 2, 3]
    assert_same_bits(finished, stopped)


def test_files_that_are_written_to_meanwhile_are_told(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fakes.image_folder(tmp_path / 'images', {'a': 20, 'b': 20}, size=16)
    for touched in (False, True):
        def train(self: loop.Loop, touched: bool = touched, before: Any = loop.Loop.train) -> None:
            before(self)
            if touched:
                next(folder.rglob('*.png')).touch()
        with monkeypatch.context() as patched:
            patched.setattr(loop.Loop, 'train', train)
            assert run(f'folder:{folder}', tmp_path / f'run{touched}', '--epochs', '2') == 0
        assert ('were written to during the training' in capsys.readouterr().out) == touched


def test_another_recipe_is_refused_and_the_difference_shown(
        data: str, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in stopped.iterdir()}
    assert run(data, stopped) == 2 and '--resume' in capsys.readouterr().err
    assert run(data, stopped, '--resume', '--lr', '1e-4') == 2
    assert 'lr 0.002 -> 0.0001' in capsys.readouterr().err
    assert run(data, stopped, '--resume', '--fraction', '0.5') == 2
    assert 'fraction' in capsys.readouterr().err
    assert run(data, stopped, '--resume', '--model-args', "{'drop_path_rate': 0.5}") == 2     # one that was not given
    assert 'drop_path_rate None -> 0.5' in capsys.readouterr().err
    assert {path: path.read_bytes() for path in stopped.iterdir()} == before


def test_a_run_of_an_earlier_version_goes_on(data: str, finished: Path, stopped: Path) -> None:
    path = stopped / 'recipe.json'
    facts = json.loads(path.read_text())
    facts['recipe']['about'] = 'In its words.'
    del facts['recipe']['teacher'], facts['recipe']['sizes'], facts['sha256'], facts['cfg']     # it did not know them
    facts['data'] = {key: facts['data'][key] for key in ('source', 'images', 'labels')}
    path.write_text(json.dumps(facts))
    for checkpoint in run_dir.checkpoints(stopped):
        state = read_checkpoint(checkpoint)
        del state['run']
        run_dir.save_checkpoint(stopped, state['step'], state)
    assert run(data, stopped, '--resume') == 0
    assert_same_bits(finished, stopped)


@pytest.fixture
def tuned(data: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, list[str]]:
    """A whole run that begins with the weights of another, one that was stopped, and their options."""
    shutil.copytree(finished, tmp_path / 'start')
    options = ['--from-weights', str(tmp_path / 'start')]
    assert run(data, tmp_path / 'whole', *options) == 0
    with monkeypatch.context() as patched:
        stop_at(patched, 8, signal.SIGTERM)
        assert run(data, tmp_path / 'tuned', *options) == 128 + signal.SIGTERM
    return tmp_path / 'whole', tmp_path / 'tuned', options


def renormalize(start: Path) -> None:
    """State another mean in a weights file."""
    stated = read_metadata(start)
    cfg = {**json.loads(stated['pretrained_cfg']), 'mean': [0., 0., 0.]}
    save_weights(weights(start.parent), start, {**stated, 'pretrained_cfg': json.dumps(cfg)})


@pytest.mark.parametrize('change', [renormalize, lambda start: shutil.rmtree(start.parent)], ids=['mean', 'removed'])
def test_the_weights_to_begin_with_are_needed_once(data: str, tuned: tuple[Path, Path, list[str]], change: Any) -> None:
    """A resumed run, finished or not, keeps its weights and normalization whatever becomes of them."""
    whole, output, options = tuned
    before = (whole / 'weights.safetensors').read_bytes()
    change(output.with_name('start') / 'weights.safetensors')
    for folder in (whole, output):
        assert run(data, folder, '--resume', *options) == 0
        assert (folder / 'weights.safetensors').read_bytes() == before


def test_other_weights_to_begin_with_before_the_first_checkpoint(
        data: str, tuned: tuple[Path, Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    _, output, options = tuned
    for path in run_dir.checkpoints(output):
        path.unlink()
    renormalize(output.with_name('start') / 'weights.safetensors')
    assert run(data, output, '--resume', *options) == 2
    assert 'weights or options (mean [' in capsys.readouterr().err


@pytest.mark.parametrize('change', ['val_images', 'val_labels', 'test_images', 'test_labels'])
def test_other_images_for_evaluation_are_refused(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    """The best weights are chosen by them, or the figures follow."""
    data = write_npz(tmp_path / 'images.npz')
    arrays = dict(np.load(tmp_path / 'images.npz'))
    arrays |= {'val_images': 255 - arrays['test_images'], 'val_labels': arrays['test_labels']}
    np.savez(tmp_path / 'images.npz', **arrays)
    assert run(data, tmp_path / 'run', '--epochs', '1', '--warmup-epochs', '0', '--mix-off-epoch', '0') == 0
    arrays[change] = arrays[change][::-1]
    np.savez(tmp_path / 'images.npz', **arrays)
    before = {path: path.read_bytes() for path in (tmp_path / 'run').iterdir()}
    assert run(data, tmp_path / 'run', '--resume', '--epochs', '1', '--warmup-epochs', '0', '--mix-off-epoch', '0') == 2
    error = capsys.readouterr().err
    assert f'with other data, weights or options ({change.partition("_")[0]} ' in error and error.count('\n') == 1
    assert {path: path.read_bytes() for path in (tmp_path / 'run').iterdir()} == before


def test_images_that_a_run_was_trained_on_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where its folder has grown, another fifth is for testing; and along a chain of runs."""
    folder = fakes.image_folder(tmp_path / 'images', {'a': 30, 'b': 30}, size=16)
    options: dict[str, Any] = dict(
        epochs=1, warmup_epochs=0, batch_size=16, img_size=16, device='cpu', val_fraction=0.2)
    one = zoo.train('cct_2_3x2.untrained', folder, output=tmp_path / 'one', **options)
    one.evaluate(folder)
    assert 'trained on' not in caplog.text
    zoo.train(one, folder, output=tmp_path / 'two', **options)
    assert 'training images of' not in (tmp_path / 'two/train.log').read_text()
    zoo.train(one, folder, output=tmp_path / 'three', seed=1, **options)    # other images for validation
    assert f'validation images were training images of {one.folder}' in (tmp_path / 'three/train.log').read_text()
    fakes.image_folder(folder / 'more', {'c': 1}, size=16)
    for path in (folder / 'more/c').iterdir():
        path.rename(folder / 'a' / 'new.png')
    shutil.rmtree(folder / 'more')
    for place in (one.folder, tmp_path / 'two'):
        caplog.clear()
        zoo.load(place).evaluate(folder)
        assert re.search(r'\d+ of 12 images of images were trained on by', caplog.text)
    others = fakes.image_folder(tmp_path / 'others', {'a': 30, 'b': 30}, size=16)
    last = zoo.train(tmp_path / 'two', others, output=tmp_path / 'last', **options)
    caplog.clear()
    last.evaluate(folder)       # of which it was not trained on any itself
    assert 'trained on by' in caplog.text
    shutil.copy(last.folder / 'weights.safetensors', tmp_path / 'one/other.safetensors')
    assert not trained_on(tmp_path / 'one/other.safetensors') and trained_on(one.folder / 'weights.safetensors')
    (tmp_path / 'two/trained_on.bin').unlink()
    for _ in range(2):
        zoo.load(tmp_path / 'two').evaluate(folder)
    assert caplog.text.count('two/trained_on.bin or result.json is missing or damaged') == 1
    (one.folder / 'result.json').write_bytes((one.folder / 'result.json').read_bytes().replace(b'top1', b'tip1'))
    assert not trained_on(one.folder) and 'one/trained_on.bin or result.json is missing or damaged' in caplog.text


def test_a_run_without_a_checkpoint_begins_with_the_same_weights_again(
        data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = dict(epochs=1, warmup_epochs=0, batch_size=16, img_size=16, device='cpu')
    one = zoo.train('cct_2_3x2.untrained', data, output=tmp_path / 'one', **options).folder
    two = zoo.train('cct_2_3x2', data, start=one, output=tmp_path / 'two', **options).folder
    assert one and two
    before = read_weights(two / 'weights.safetensors')
    for path in (*two.glob('checkpoint-*'), two / 'result.json', two / 'weights.safetensors'):
        path.unlink()
    shutil.copytree(one, tmp_path / 'copy')
    shutil.rmtree(one)
    zoo.train('cct_2_3x2.untrained', data, output=one, seed=1, **options)
    with pytest.raises(ZooError, match=r'with other data, weights or options \(start '):
        zoo.train('cct_2_3x2', data, start=one, output=two, resume=True, **options)
    shutil.rmtree(one)
    (tmp_path / 'copy').rename(one)
    zoo.train('cct_2_3x2', data, start=one, output=two, resume=True, **options)
    after = read_weights(two / 'weights.safetensors')
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_images_that_the_start_was_trained_on_are_kept_when_it_is_gone(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, others = (fakes.image_folder(tmp_path / name, {'a': 10, 'b': 10}, size=16) for name in ('first', 'others'))
    options: dict[str, Any] = dict(epochs=1, warmup_epochs=0, batch_size=16, img_size=16, device='cpu')
    one = zoo.train('cct_2_3x2.untrained', first, output=tmp_path / 'one', **options)
    two = zoo.train('cct_2_3x2', others, start=one.folder, output=tmp_path / 'two', **options).folder
    assert two is not None
    known = trained_on(two)
    assert known > trained_on(one.folder) and len(trained_on(one.folder)) == 17     # of 16 images, and a checksum
    (tmp_path / 'three').mkdir()
    for name in ('recipe.json', 'trained_on.bin'):      # all that a run has that was refused before its first step
        shutil.copy(two / name, tmp_path / 'three')
    zoo.train('cct_2_3x2.untrained', others, output=tmp_path / 'three', **options)
    assert len(trained_on(tmp_path / 'three')) == 17
    assert one.folder
    four = zoo.train(one.folder, others, output=tmp_path / 'four', **options).folder
    assert four
    shutil.rmtree(one.folder)
    (two / 'result.json').unlink()
    zoo.train('cct_2_3x2', others, start=one.folder, output=two, resume=True, **options)
    assert trained_on(two) == known
    (four / 'result.json').unlink()
    zoo.train(one.folder, others, output=four, resume=True, **options)      # its name says no architecture
    assert trained_on(four) == known
    with pytest.raises(ZooError, match='There is no file or run directory'):
        zoo.train(one.folder, others, output=tmp_path / 'five', resume=True, **options)
    (two / 'trained_on.bin').write_bytes(b'damaged')
    assert not trained_on(two)
    (two / 'result.json').unlink()
    caplog.clear()
    trained._warn.cache_clear()     # the line came before
    zoo.train('cct_2_3x2', others, start=one.folder, output=two, resume=True, **options)
    assert len(trained_on(two)) == 17 and 'two/trained_on.bin or result.json is missing or damaged' in caplog.text


def test_other_names_of_the_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def table(*names: str) -> str:
        rows = [f'{i}.png,{names[i % 3]},{"train" if i < 48 else "test"}' for i in range(60)]
        (tmp_path / 'table.csv').write_text('\n'.join(['path,label,split', *rows]))
        return f'csv:{tmp_path / "table.csv"}'
    for i, pixels in enumerate(np.random.RandomState(0).randint(0, 256, (60, 12, 12, 3), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f'{i}.png')
    short = ['--epochs', '1', '--warmup-epochs', '0', '--mix-off-epoch', '0']
    assert run(table('cat', 'dog', 'fox'), tmp_path / 'run', *short) == 0
    assert run(table('apple', 'bus', 'car'), tmp_path / 'run', *short, '--resume') == 2
    error = capsys.readouterr().err
    assert '(class_names ' in error and error.count('\n') == 1
    assert run(table('cat', 'dog', 'fox'), tmp_path / 'run', *short, '--resume') == 0


def test_a_damaged_log_is_mended(data: str, finished: Path, stopped: Path) -> None:
    (stopped / 'log.jsonl').write_bytes((stopped / 'log.jsonl').read_bytes().replace(b'"epoch": 1', b'"epoch": 9'))
    assert run(data, stopped, '--resume') == 0
    timed = ('seconds', 'images_per_second')
    assert [{k: v for k, v in row.items() if k not in timed} for row in _rows(stopped)] == [
        {k: v for k, v in row.items() if k not in timed} for row in _rows(finished)]


def test_a_finished_run_stays_as_it_is(
        data: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the temperature of a later calibration; the weights of another run in its place are refused."""
    mine, file = tmp_path / 'run', tmp_path / 'run/weights.safetensors'
    shutil.copytree(finished, mine)
    write_readout(file, Readout(temperature=2.5))
    before = file.read_bytes()
    assert run(data, mine, '--resume') == 0 and 'is finished' in capsys.readouterr().out
    assert file.read_bytes() == before
    assert run(data, tmp_path / 'other', '--seed', '1', '--epochs', '2') == 0
    shutil.copy(tmp_path / 'other/weights.safetensors', file)
    with pytest.raises(ZooError, match='is not the file of this run'):
        resolve(mine)
    assert resolve(f'cct_2_3x2={file}').has_weights
    shutil.copy(tmp_path / 'other/result.json', mine)
    with pytest.raises(ZooError, match=r'result.json in .* is of another run'):
        resolve(mine)
    assert run(data, mine, '--resume') == 0 and 'Repeating the end' in capsys.readouterr().out
    assert_same_bits(finished, mine)


def test_the_home_directory(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is where it is for reading, in commands and in Python; a folder of that name is not."""
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path)
    assert run(data, Path('~/run'), '--epochs', '2') == 0
    assert resolve('~/run').file == tmp_path / 'home/run/weights.safetensors' and not Path('~').exists()
    assert zoo.load('~/run').folder == tmp_path / 'home/run'
    assert zoo.train('~/run', data, output='~/b', epochs=1, img_size=16, device='cpu').folder == tmp_path / 'home/b'
    zoo.load('~/b').export('~/b.pt2')
    assert (tmp_path / 'home/b.pt2').exists() and not Path('~').exists()
    with pytest.raises(ZooError, match='inside the folder of the images'):
        fakes.image_folder(tmp_path / 'home/images', {'a': 9, 'b': 9})
        zoo.train('cct_2_3x2.untrained', Path('~/images'), output='~/images/run')
    assert zoo.load('~/b').predict('~/images/a/000.png') == zoo.load('~/b').predict(Path('~/images/a/000.png'))
    convert('~/b/weights.safetensors', '~/c.safetensors')
    assert read_weights('~/c.safetensors') and not Path('~').exists()
    Path('~').mkdir()
    assert user_path('./~/a') == tmp_path / '~/a' == user_path(user_path('./~/a'))
    Path('~').rmdir()
    for name in ('~\0', '~a\0b', '~\ud800', 'a\ud800', '\0'):
        for call in (lambda name=name: zoo.load(name), lambda name=name: zoo.train('cct_2_3x2', f'folder:{name}'),
                     lambda name=name: zoo.train('cct_2_3x2', ([name] * 4, [0, 1, 0, 1])),
                     lambda name=name: zoo.train('cct_2_3x2', Path(name))):
            with pytest.raises(ZooError, match='can be no name of a file'):
                call()
    monkeypatch.delenv('HOME')
    monkeypatch.setattr('pwd.getpwuid', lambda _: {}['no entry'])
    assert run(data, Path('~/run')) == 2 and not Path('~').exists()


def test_a_kill_before_the_recipe_was_written(data: str, finished: Path, tmp_path: Path) -> None:
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / '.partial-recipe.json').write_text('{"reci')
    (tmp_path / 'run/pretraining').mkdir()
    (tmp_path / 'run/pretraining/.partial-1').touch()
    assert run(data, tmp_path / 'run') == 0
    assert_same_bits(finished, tmp_path / 'run')
    assert not list((tmp_path / 'run').rglob('.partial*'))


def test_a_signal_after_the_last_step(
        data: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Supervised, 'judge', interrupted)
        assert run(data, tmp_path / 'run') == 130
    assert 'continue with --resume' in capsys.readouterr().err
    assert run(data, tmp_path / 'run', '--resume') == 0
    assert_same_bits(finished, tmp_path / 'run')


def test_the_images_may_have_another_name(data: str, finished: Path, stopped: Path, tmp_path: Path) -> None:
    kind, _, place = data.partition(':')
    shutil.copy(place, tmp_path / 'other.npz')
    assert run(f'{kind}:{tmp_path / "other.npz"}', stopped, '--resume') == 0
    assert_same_bits(finished, stopped)


def test_weights_to_begin_with_that_are_no_numbers(data: str, tmp_path: Path) -> None:
    model = timm.create_model('cct_2_3x2')
    torch.nn.init.constant_(model.norm.bias, math.nan)
    save_weights(model.state_dict(), tmp_path / 'nan.safetensors')
    with pytest.raises(ZooError, match=r'nan\.safetensors has weights that are NaN or infinite: start from others'):
        zoo.train('cct_2_3x2', data, start=tmp_path / 'nan.safetensors', output=tmp_path / 'run', epochs=1)


def test_two_processes_do_not_write_to_one_run(
        data: str, stopped: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('fcntl')
    before = {path: path.read_bytes() for path in stopped.iterdir() if path.name != '.lock'}
    script, ready = tmp_path / 'hold.py', tmp_path / 'ready'
    script.write_text(f'import time; from pathlib import Path; from tinyvit_zoo.runtime.lock import lock; '
                      f'file = lock(Path({str(stopped)!r})); Path({str(ready)!r}).touch(); time.sleep(100)')
    holding = server.start([str(script)], tmp_path / 'hold')
    while not ready.exists():
        time.sleep(0.01)
    assert run(data, stopped, '--resume') == 2
    assert f'is in use by process {holding} on' in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in stopped.iterdir() if path.name != '.lock'}
    os.kill(holding, signal.SIGKILL)    # the lock goes with it
    server.wait(holding)
    assert run(data, stopped, '--resume') == 0


def test_two_threads_do_not_write_to_one_run(tmp_path: Path) -> None:
    """By whatever names they call it; and the one that is refused does not give up the lock of the other."""
    (tmp_path / 'link').symlink_to(tmp_path)
    for _ in range(2):      # it can be had again
        held = lock(tmp_path)
        for name in (tmp_path, tmp_path / 'link'):
            with pytest.raises(ZooError, match='in use by another training of this process'):
                lock(name)
        assert 'process' in (tmp_path / '.lock').read_text()
        unlock(held)


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(
        data: str, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    def denied(path: str | Path) -> list[str]:     # root may list all
        raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(os, 'scandir', denied)
    monkeypatch.setattr(os, 'listdir', denied)
    for output, resume in ((stopped, ['--resume']), (tmp_path, [])):
        assert run(data, output, *resume) == 2
        error = capsys.readouterr().err
        assert f'{output} cannot be read (Permission denied)' in error and error.count('\n') == 1


@pytest.mark.parametrize('factor', [math.inf, 1e20])
def test_weights_that_the_last_step_spoils(
        data: str, tmp_path: Path, factor: float, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    """The loss before it was sound; weights that are no numbers, or that give none, end in a line."""
    step = loop.Loop.train_step

    def spoil(self: loop.Loop, *batch: torch.Tensor) -> None:
        step(self, *batch)
        with torch.no_grad():
            torch._foreach_mul_(self.parameters, factor)
    monkeypatch.setattr(loop.Loop, 'train_step', spoil)
    assert run(data, tmp_path / 'run', '--epochs', '1', '--warmup-epochs', '0', '--batch-size', '96',
               '--mix-off-epoch', '0') == 2
    error = capsys.readouterr().err
    assert ('became' in error or 'not finite' in error) and error.count('\n') == 1
    assert not {path.name for path in (tmp_path / 'run').iterdir()} & {'result.json', 'weights.safetensors'}


def test_a_folder_with_other_things_is_left_alone(
        data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'thesis.tex').write_text('...')
    assert run(data, tmp_path) == 2
    assert 'holds other files' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_a_full_disk(data: str, stopped: Path, finished: Path, monkeypatch: pytest.MonkeyPatch,
                     capsys: pytest.CaptureFixture[str]) -> None:
    """The last checkpoints stay whole, and the run goes on once there is room."""
    kept = {path: path.read_bytes() for path in run_dir.checkpoints(stopped)}
    with monkeypatch.context() as patched:
        def full(descriptor: int) -> None:
            raise OSError(28, 'No space left on device')
        patched.setattr(os, 'fsync', full)
        assert run(data, stopped, '--resume', '--checkpoint-minutes', '0') == 2
    assert 'No space left' in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run_dir.checkpoints(stopped)} == kept
    assert not list(stopped.glob('.*partial*'))
    assert run(data, stopped, '--resume') == 0
    assert_same_bits(finished, stopped)


def test_a_loss_that_is_no_number_stops_the_run(
        data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It says the step and the rate, and no checkpoint holds what came after."""
    whole = loop.Loop.train_step

    def poisoned(self: loop.Loop, images: torch.Tensor, labels: torch.Tensor) -> None:
        if self.step == 9:
            next(iter(self.task.network.parameters())).data[:] = math.nan
        whole(self, images, labels)

    monkeypatch.setattr(loop.Loop, 'train_step', poisoned)
    assert run(data, tmp_path / 'run', '--checkpoint-minutes', '0') == 2
    error = capsys.readouterr().err
    assert 'step 10' in error and 'learning rate' in error and 'checkpoint-00000009.pt' in error
    states = [read_checkpoint(path) for path in run_dir.checkpoints(tmp_path / 'run')]
    assert all(torch.isfinite(value).all() for state in states for value in state['network'].values())


def test_a_crop_of_the_evaluation_is_that_of_the_weights(
        data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In memory and streamed, while training and afterwards."""
    for loader in ('memory', 'stream'):
        output = tmp_path / loader
        assert run(data, output, '--crop-pct', '0.5', '--epochs', '1', '--warmup-epochs', '0', '--ema', '0', '--loader',
                   loader, '--workers', '0') == 0
        result = json.loads((output / 'result.json').read_text())['figures']['test']['loss']
        row = json.loads((output / 'log.jsonl').read_text())
        capsys.readouterr()
        assert main(['eval', str(output), '--data', data, '--json', '--device', 'cpu']) == 0
        later = json.loads(capsys.readouterr().out)[0]['loss']
        assert [row['test_loss'], later] == pytest.approx([result, result], abs=1e-5)


# -- what is refused
def test_a_run_that_was_refused_before_its_first_step_may_begin_anew(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fakes.image_folder(tmp_path / 'set', {'a': 20, 'b': 20}, 16)
    image = folder / 'a' / '003.png'
    whole = image.read_bytes()
    image.write_bytes(whole[:60])
    argv = f'folder:{folder}', tmp_path / 'run', '--epochs', '1', '--warmup-epochs', '0'
    assert run(*argv) == 2 and '003.png' in capsys.readouterr().err
    image.write_bytes(whole)
    assert run(*argv, '--lr', '1e-3') == 0
    assert run(*argv) == 2 and 'holds a run' in capsys.readouterr().err


@pytest.mark.parametrize('words, argv', [
    ("no augmentation policy 'foo'", ['--auto-augment', 'foo']), ("interpolation is 'foo'", [
        '--crop-interpolation', 'foo']), ("erase_mode is 'foo'", ['--erase', '.2', '--erase-mode', 'foo']),
    ('crop_scale is (0.8,), expected 2 numbers', ['--crop-padding', '0', '--crop-scale', '(0.8,)']),
    ('the smaller number first', ['--crop-padding', '0', '--crop-scale', '(0.8, 0.2)']),
    ('expected one of them', ['--crop-padding', '4', '--crop-scale', '(0.8, 1.)']),
    ('crop_padding is -2', ['--crop-padding', '-2']), ('betas is (0.9,)', ['--betas', '(0.9,)']),
    ("betas is ('a', 'b')", ['--betas', "('a', 'b')"]), ('betas is (0.9, 1.0)', ['--betas', '(0.9, 1.)']),
    ('at most 0.5', ['--color-jitter', '(0, 0, 0, 0.9)']), ('color_jitter is (9, 9)', ['--color-jitter', '(9, 9)']),
    ('smoothing is 2.0, expected 0 to 1', ['--smoothing', '2']), ('flip is 2.0', ['--flip', '2']),
    ('lr is -1.0', ['--lr', '-1']), ('lr is nan', ['--lr', 'nan']), ('lr is inf', ['--lr', 'inf']),
    ('mixup is -1.0', ['--mixup', '-1']), ('std is (0.5, 0, 0.5), expected 3 numbers, each from 1e-30', [
        '--mean', '(0.5, 0.5, 0.5)', '--std', '(0.5, 0, 0.5)']), ('mean is (1, 1)', ['--mean', '(1, 1)']),
    ('give both or neither', ['--mean', '(0.5, 0.5, 0.5)']), ("argument 'foo'", ['--model-args', "{'foo': 1}"]),
    ('drop_path_rate is 2', ['--model-args', "{'drop_path_rate': 2}"]),
    ("has 'num_classes'", ['--model-args', "{'num_classes': 5}"]), ("has 'checkpoint_path'", [
        '--model-args', "{'checkpoint_path': 'w.pth'}"]), ("has 'in_chans'", ['--model-args', "{'in_chans': 1}"]),
    ("has 'img_size'", ['--model-args', "{'img_size': 8}"]), ('not [images, classes]', [
        '--model-args', "{'global_pool': ''}"]), ('crop_scale is (0.5, True)', ['--crop-scale', '(0.5, True)']),
    ('depth is 0', ['--model-args', "{'depth': 0}"]),
    ("embed_dim is 'a'", ['--model-args', "{'embed_dim': 'a'}"]), ('as torch takes it', [
        '--seed', '99999999999999999999']), ('cooldown_epochs is -1', ['--cooldown-epochs', '-1', '--epochs', '1']),
    ('clip is -1.0', ['--clip', '-1']), ('ema is 2.0', ['--ema', '2']), ('layer_decay is 2.0', ['--layer-decay', '2']),
    ('weight_decay is -1.0', ['--weight-decay', '-1']), ('warmup_epochs is -1.0', ['--warmup-epochs', '-1']),
    ('epochs is 0', ['--epochs', '0']), ('crop_pct is 0.0', ['--crop-pct', '0']), ('eval_every is -1', [
        '--eval-every', '-1']), ('workers is -1', ['--loader', 'stream', '--workers', '-1']),
    ('0 to 256', ['--workers', '100000']),
    ('checkpoint_minutes is -1.0', ['--checkpoint-minutes', '-1']), ('mix_prob is 3.0', ['--mix-prob', '3']),
    ("mix_mode is 'foo'", ['--mix-mode', 'foo']), ("no optimizer 'adamv'", ['--opt', 'adamv']),
])
def test_bad_values_are_one_line_and_leave_nothing(
        data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, argv: list[str]) -> None:
    assert run(data, tmp_path / 'run', *argv) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1
    assert not (tmp_path / 'run').exists()


# -- other ways to train
@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_streamed_images_resume_to_the_same_bits(
        data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    streamed = ['--loader', 'stream', '--workers', str(workers), '--crop-padding', '0', '--crop-scale', '(0.5, 1.)',
                '--crop-interpolation', 'random', '--auto-augment', 'rand-m9-mstd0.5-inc1', '--erase', '0.5']
    assert run(data, tmp_path / 'whole', *streamed) == 0
    with monkeypatch.context() as patched:
        stop_at(patched, 8, signal.SIGTERM)
        assert run(data, tmp_path / 'stopped', *streamed) == 128 + signal.SIGTERM
    assert run(data, tmp_path / 'stopped', '--resume', *streamed, '--loader', 'memory') == 2  # other augmentations
    assert run(data, tmp_path / 'stopped', '--resume', *streamed) == 0
    assert_same_bits(tmp_path / 'whole', tmp_path / 'stopped')


@pytest.mark.parametrize('policy', ['cifar10', 'svhn', 'imagenet', 'rand-m9-mstd0.5-inc1', ''])
def test_the_streamed_augmentation_builds(policy: str) -> None:
    from PIL import Image

    recipe = replace(RECIPE, auto_augment=policy, crop_padding=4, erase=1., color_jitter=(0.4, 0.4, 0.2, 0.1))
    cfg = dict(input_size=(3, 24, 32), mean=(0.5,) * 3, std=(0.2,) * 3)
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 40, 3), np.uint8))
    x = AugmentSpec.of(recipe, cfg).pillow()(image)
    assert x.shape == (3, 24, 32) and torch.isfinite(x).all() and x.std() > 0.1


def test_streamed_posterising() -> None:
    """As Pillow's, and no error at the strongest magnitude, which keeps no bit."""
    from PIL import Image, ImageOps

    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (8, 8, 3), np.uint8))
    for bits in range(1, 9):
        assert np.array_equal(spec.posterize(image, bits), ImageOps.posterize(image, bits))
    strongest = spec.policy('rand-m10-n9-inc1', 8, (0.5,) * 3)
    assert all(op.aug_fn is spec.posterize for op in strongest.ops if 'Posterize' in op.name)
    assert not np.asarray(spec.posterize(image, 0)).any()


def test_fine_tuning_other_images_of_another_size(finished: Path, tmp_path: Path) -> None:
    other = write_npz(tmp_path / 'other.npz', classes=3, size=24)
    settings = ['--from-weights', str(finished), '--img-size', '24', '--epochs', '1', '--warmup-epochs', '0']
    assert run(other, tmp_path / 'tuned', *settings, '--lr', '1e-9', '--ema', '0') == 0
    tuned, begun = weights(tmp_path / 'tuned'), weights(finished)
    assert tuned['head.weight'].shape[0] == 3 and tuned['pos_embed'].shape[1] == 36
    torch.testing.assert_close(  # it began with the given weights
        tuned['blocks.0.linear1.weight'], begun['blocks.0.linear1.weight'], rtol=0, atol=1e-6)


def test_a_model_of_timms_trains_and_its_weights_load(
        data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(data, tmp_path / 'run', '--ema', '0', model='mobilenetv3_small_050') == 0
    loaded = resolve(tmp_path / 'run').load()
    assert loaded.model.num_classes == 4 and tuple(loaded.cfg['input_size']) == (3, 16, 16)
    assert json.loads((tmp_path / 'run/result.json').read_text())['figures']['test']['images'] == 24
    monkeypatch.chdir(tmp_path / 'run')
    code, found = (tmp_path / 'run/card.md').read_text().split('```python\n')[1].split('```')[0], {}
    exec(code, found)
    cfg = timm.data.resolve_model_data_config(found['model'])
    assert json.loads(json.dumps(cfg)) == json.loads(json.dumps(loaded.cfg))
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(found['model'].eval()(images), loaded.model(images))


def test_the_best_by_validation_is_kept(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, tmp_path / 'run', '--keep', 'best', '--eval-every', '1') == 0
    assert '10% of the training images are held out' in capsys.readouterr().out
    assert json.loads((tmp_path / 'run/recipe.json').read_text())['val_fraction'] == 0.1
    rows = _rows(tmp_path / 'run')
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert result['figures']['val']['top1'] == pytest.approx(max(row['val_top1'] for row in rows))
    assert not any('test_top1' in row for row in rows)  # test images are not even looked at
    assert run(data, tmp_path / 'run', '--keep', 'best', '--resume') == 2     # other epochs would be looked at
    assert 'eval_every 1 -> 0' in capsys.readouterr().err


@pytest.mark.parametrize('options', [
    ['--batch-size', '1'], ['--accumulate', '16'], ['--batch-size', '7', '--accumulate', '3']])
def test_batch_norms_need_several_images(
        data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    assert run(data, tmp_path / 'run', '--mixup', '0', *options, model='fast_cnn_half') == 2
    error = capsys.readouterr().err
    assert 'larger batch_size, or less accumulate' in error and error.count('\n') == 1


def test_many_test_images_are_evaluated_less_often(tmp_path: Path) -> None:
    """72 cost as much as a step of 24, so every fifth epoch is a fifth of the time."""
    assert run(write_npz(tmp_path / 'a.npz', train=24, test=72), tmp_path / 'run', '--epochs', '12') == 0
    assert [row['epoch'] for row in _rows(tmp_path / 'run') if 'test_top1' in row] == [5, 10, 12]


def test_curves_are_drawn_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(run_dir.Run, 'draw', lambda self: drawn.append(len(self.rows)))
    one = run_dir.Run(tmp_path)
    for epoch in range(1, 6):
        one.drawn = time.monotonic() - 60 * (epoch == 3)
        one.log({'epoch': epoch, 'step': epoch, 'train_loss': 1., 'images_per_second': 1., 'test_top1': 50.})
    one.finish({})
    assert drawn == [3, 5]


def test_training_images_among_the_test_images_are_named(
        data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = dict(np.load(data.removeprefix('npz:')))
    arrays['test_images'][2:7] = arrays['train_images'][0]
    np.savez(tmp_path / 'leaky.npz', **arrays)
    assert run(f'npz:{tmp_path}/leaky.npz', tmp_path / 'run', '--epochs', '2') == 0
    line = '5 of 24 test images are training images too'
    assert line in capsys.readouterr().out and line in (tmp_path / 'run' / 'train.log').read_text()


def test_tensorboard_events_where_asked(data: str, tmp_path: Path) -> None:
    pytest.importorskip('tensorboard')
    assert run(data, tmp_path / 'run', '--track', 'tensorboard', '--epochs', '2') == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(tmp_path / 'run' / 'tensorboard')).Reload()
    assert [event.step for event in events.Scalars('train_loss')] == [6, 12]
    figures = json.loads((tmp_path / 'run' / 'result.json').read_text())['figures']['test']
    for name in ('top1', 'f1', 'loss'):
        assert events.Scalars(f'final_test_{name}')[0].value == pytest.approx(figures[name], rel=1e-6)


@pytest.mark.slow
def test_the_first_minute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part of it: the recipe's thirty epochs give 99 %."""
    assert main(['train', 'cct_2_3x2.digits', '--data', 'digits', '--output', str(tmp_path / 'run'),
                 '--epochs', '4']) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    accuracy = json.loads((tmp_path / 'run' / 'result.json').read_text())['figures']['test']['top1']
    assert accuracy >= 80 and f'{accuracy:.2f} %' in last


# -- the pieces ------------------------------------------------------------------------------------------------------
RECIPE = Recipe(name='cct_2_3x2.x', about='', epochs=20, lr=1e-3, warmup_epochs=4, warmup_lr=1e-5, min_lr=1e-5,
                cooldown_epochs=3)


def test_the_schedule_is_timms() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=RECIPE.lr)
    theirs = CosineLRScheduler(optimizer, t_initial=20, lr_min=1e-5, warmup_t=4, warmup_lr_init=1e-5)
    for epoch in range(23):
        theirs.step(epoch)
        assert learning_rate(RECIPE, epoch) == pytest.approx(optimizer.param_groups[0]['lr'], rel=1e-9), epoch


def test_the_linear_schedule() -> None:
    linear = replace(RECIPE, schedule='linear', warmup_lr=0., min_lr=0.)
    assert [learning_rate(linear, e) for e in (0, 2, 4, 12, 20, 22)] == pytest.approx([0, 5e-4, 1e-3, 5e-4, 0, 0])


def test_what_is_decayed() -> None:
    model = timm.create_model('vit_lite_2_4')
    names = {id(p): name for name, p in model.named_parameters()}

    def decayed(recipe: Recipe) -> set[str]:
        return {names[id(p)] for group in make_optimizer(recipe, model).param_groups
                for p in group['params'] if group['weight_decay']}

    usual = decayed(RECIPE)
    assert 'head.weight' in usual and not usual & {'pos_embed', 'cls_token', 'norm.weight', 'head.bias'}
    assert decayed(replace(RECIPE, decay_all=True)) == set(names.values())


def test_layer_decay() -> None:
    model = timm.create_model('cct_2_3x2')
    scales = {id(p): group['lr_scale'] for group in make_optimizer(replace(RECIPE, layer_decay=0.5), model).param_groups
              for p in group['params']}
    assert scales[id(model.head.weight)] == 1 and scales[id(model.tokenizer.convs[0].weight)] < 0.2


def test_clipping() -> None:
    a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))

    def clipped(mode: str) -> list[float]:
        a.grad, b.grad = torch.tensor([3., 0., 4.]), torch.tensor([0.3, 0.4])
        clip_gradients([a, b], 1., mode)
        return [a.grad.norm().item(), b.grad.norm().item()]

    assert clipped('tensor') == pytest.approx([1., 0.5], abs=1e-5)
    assert math.hypot(*clipped('norm')) == pytest.approx(1., abs=1e-5)


def test_averaging() -> None:
    average, model = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * average.weight + 0.1 * model.weight
    average_(average, model, 0.9)
    torch.testing.assert_close(average.weight, expected)


@pytest.mark.parametrize('balance', ['none', 'loss'])
def test_accumulation_changes_nothing_but_memory(balance: str, tmp_path: Path) -> None:
    draw = np.random.RandomState(0)     # the rarest class is not in every part
    np.savez(tmp_path / 'a.npz', train_images=draw.randint(0, 256, (64, 16, 16, 3)).astype(np.uint8),
             train_labels=np.array([0] * 48 + [1] * 12 + [2] * 4), test_labels=np.array([0, 1]),
             test_images=np.zeros((2, 16, 16, 3), np.uint8))
    data = f'npz:{tmp_path / "a.npz"}'
    assert run(data, tmp_path / 'one', *PLAIN, '--balance', balance) == 0
    assert run(data, tmp_path / 'four', *PLAIN, '--balance', balance, '--accumulate', '4') == 0
    one, four = weights(tmp_path / 'one'), weights(tmp_path / 'four')
    for key in one:
        torch.testing.assert_close(one[key], four[key], rtol=1e-4, atol=1e-5)


def test_a_run_in_bfloat16_is_judged_in_float32(data: str, tmp_path: Path) -> None:
    assert run(data, tmp_path / 'run', '--precision', 'bf16') == 0
    found = json.loads((tmp_path / 'run/result.json').read_text())['figures']['test']
    assert zoo.load(tmp_path / 'run', 'cpu').evaluate(data).loss == pytest.approx(found['loss'], abs=1e-6)


def test_number_formats() -> None:
    cpu = torch.device('cpu')
    assert autocast_dtype('fp32', cpu) is None and autocast_dtype('bf16', cpu) is torch.bfloat16
    with pytest.raises(ZooError, match='thousand times slower'):
        autocast_dtype('fp16', cpu)


# -- the command -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('more, message', [
    (['--learning-rate', '1'], "no option '--learning-rate'"), (['--warmup-epoch', '1'], '--warmup-epochs'),
    (['--epochs', 'many'], 'expected a whole number'), (['--crop-scale', '0.5'], 'expected a value like'),
    (['--schedule', 'steps'], "expected 'cosine' or 'later_cosine' or 'linear'"),
    (['--precision', 'fp16'], 'thousand times slower'),
    (['--keep', 'best', '--val-fraction', '0'], 'val_fraction of 0.1'), (['--keep', 'ema', '--ema', '0'], 'an ema of'),
    (['--epochs', '0'], 'from 1 to 1,000,000'), (['--opt', 'adamx'], 'optimizer'),
    (['--data', 'npz:nothing.npz'], 'nothing.npz'), (['--device', 'tpu'], 'tpu'),
    (['--data', 'cifar11:x'], 'cifar1'), (['--from-weights', 'cct_4_3x2.c10'], 'of cct_4_3x2, not of cct_2_3x2'),
])
def test_bad_input_is_one_line_and_leaves_nothing(
        data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert run(data, tmp_path / 'run', *more) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert not (tmp_path / 'run').exists()


def test_a_run_among_the_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or its pictures would be a class of the next run."""
    fakes.image_folder(tmp_path / 'photos', {'a': 5, 'b': 5})
    assert run(f'folder:{tmp_path}/photos', tmp_path / 'photos' / 'runs' / 'one') == 2
    assert 'inside the folder of the images' in capsys.readouterr().err and not (tmp_path / 'photos' / 'runs').exists()


@pytest.mark.parametrize('recipe', RECIPES.values(), ids=lambda recipe: recipe.name)
def test_every_recipe_builds_its_model(recipe: Recipe) -> None:
    """At its size, with its arguments; it passes the checks and is shown with all its settings."""
    check_recipe(replace(recipe, from_weights=''))
    from tinyvit_zoo.data.datasets import DATASETS
    from tinyvit_zoo.publish.cards import recipe_text
    model = timm.create_model(
        recipe.model, img_size=recipe.img_size, num_classes=DATASETS[recipe.dataset].num_classes, device='meta',
        **recipe.model_args)
    assert model.num_classes == DATASETS[recipe.dataset].num_classes
    start = timm.get_pretrained_cfg(recipe.from_weights) if recipe.from_weights not in PRETRAININGS else None
    assert start is None or not recipe.from_weights or start.tag == recipe.from_weights.partition('.')[2]
    if recipe == next(other for other in RECIPES.values() if other.model[:6] == recipe.model[:6]):    # counts its cost
        assert f'lr                   {recipe.lr}' in recipe_text(recipe.name)
    with pytest.raises(AttributeError):
        recipe.lr = 1.


# -- many processes --------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_two_machines_give_the_result_of_one_process(data: str, tmp_path: Path) -> None:
    done = torchrun(*training(data, tmp_path / 'two', *PLAIN, '--ema', '0', '--accumulate', '5'), nodes=2)  # parts of 8
    assert done.returncode == 0, done.stderr[-2000:]
    assert run(data, tmp_path / 'one', *PLAIN, '--ema', '0') == 0
    one, two = weights(tmp_path / 'one'), weights(tmp_path / 'two')
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5)
    both = [json.loads((tmp_path / name / 'result.json').read_text())['figures']['test'] for name in ('one', 'two')]
    assert both[0]['images'] == both[1]['images'] == 24
    assert both[0]['loss'] == pytest.approx(both[1]['loss'], abs=1e-5)


@pytest.mark.parametrize('change, said', [
    ({'resume': True}, 'resume False -> True'), ({'val_fraction': 0.5}, 'val_fraction None -> 0.5'),
    ({'cfg': {}}, 'mean ['), ({'eval_every': 2}, 'eval_every 0 -> 2'), ({'minutes': 1.}, 'minutes None -> 1.0')])
def test_processes_of_other_options_are_refused(
        data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
        change: dict[str, Any], said: str) -> None:
    def gather(self: World, value: Any) -> list[Any]:
        if isinstance(value, dict) and change.keys() <= value.keys():
            return [value, {**value, **change}]
        return [value, value]
    monkeypatch.setattr(World, 'gather', gather)
    assert run(data, tmp_path / 'run') == 2 and not (tmp_path / 'run').exists()
    assert f'The processes of this training differ ({said}' in capsys.readouterr().err


def test_machines_that_share_no_disk_are_refused(
        data: str, stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(World, 'gather', lambda self, value: [value, value if isinstance(value, dict) else None])
    assert run(data, stopped, '--resume') == 2
    assert 'an output on a disk that all machines share' in capsys.readouterr().err


@pytest.mark.slow
def test_a_dying_process_ends_the_job_with_its_error(data: str, tmp_path: Path) -> None:
    (tmp_path / 'sitecustomize.py').write_text(
        'import os\n'
        'if os.environ.get("RANK") == "1":\n'
        '    import threading, time\n'
        '    def die():\n'
        f'        while not os.path.exists({str(tmp_path / "two" / "train.log")!r}): time.sleep(0.01)\n'
        '        os._exit(7)\n'
        '    threading.Thread(target=die, daemon=True).start()\n')
    begun = time.monotonic()
    done = torchrun(*training(data, tmp_path / 'two', *PLAIN, '--epochs', '500'), env={'PYTHONPATH': str(tmp_path)})
    assert done.returncode != 0 and time.monotonic() - begun < 120
    assert 'exitcode' in done.stderr and '7' in done.stderr
    assert 'tinyvit-zoo: Another process of this training has ended' in done.stderr
