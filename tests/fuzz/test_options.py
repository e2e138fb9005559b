"""Odd values of every option and argument of every command, as the parsers list them: a result, or one line."""
import argparse
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from fuzz_cases import cases, command
from hypothesis import given, strategies as st
from PIL import Image

from tinyvit_zoo.cli.main import _parser, _Printable
from tinyvit_zoo.measure.counting import check_memory

TEXTS = [
    '', ' ', '-', '--', '-1', '0', '1', '2', '3', '-0', '+1', '1.5', '0.5', '1e-320', '1e400', '-1e9', 'nan', 'inf',
    '-inf', 'x', 'None', 'true', '9' * 20, '9' * 5000, '1_0', '٣', '0x10', '()', '(1,)', '(1, 2)', '(0.1, 0.9)',
    '(nan, 1)', '("a", 2)', '[1, 2]', '(1,) * 9', '{}', '{1: 2}', '{"a": 1}', '{"depth": 0}', "{'drop_rate': 2}",
    '{[]: 1}',
    '1e5', '100000', '1000000', 'a=b', '=', 'epochs=1', 'epochs=x', ':', 'npz:', 'folder:', 'digits:', 'x:y', '.',
    '/dev/null', '/dev/zero', '/proc', 'no/such/file', 'no/such.png', '\x1b[31m', 'a\nb', 'a\udcffb', '\u202e', 'é',
    '%s',
    '{0}', '*', '[', 'cct*', 'cct_2_3x2', 'cct_2_3x2.none', 'resnet18', 'ssl_vit', 'x' * 300, 'x/' * 3000]
TAKES_LONG = {'--compile', '--track', '--probe', '--speed', '--help', '--version', '--fvcore', '--corruptions',
              '--attack', '--all', '--serve'}
LENGTHS = {'--minutes': 0, '--pflop': 0, '--seconds': 0.1, '--epochs': 3, '--cooldown-epochs': 3, '--topk': 9e9,
           '--steps': 3, '--accumulate': 99}     # the most that a test has time for


@pytest.fixture(scope='module')
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with images, the current one, and no way to the network."""
    place, before = tmp_path_factory.mktemp('options'), os.getcwd()
    labels = np.arange(24) % 10
    np.savez(place / 'set.npz', train_images=fakes.pixels(24, 8, 8), train_labels=labels,
             test_images=fakes.pixels(24, 8, 8), test_labels=labels)
    Image.fromarray(fakes.pixels(9, 7, 3)).save(place / 'image.png')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TINYVIT_ZOO_CACHE', str(place / 'cache'))
        patch.setenv('HF_HUB_OFFLINE', '1')
        patch.setenv('TORCH_HOME', str(place / 'torch'))
        os.chdir(place)
        yield place
    os.chdir(before)


BASES = {   # that succeed as they are, in a moment
    'list': ['cct_2'], 'info': ['cct_2_3x2.digits'], 'predict': ['cct_2_3x2.digits', 'image.png'], 'recipes': [],
    'train': ['cct_2_3x2.digits', '--data', 'npz:set.npz', '--epochs', '1', '--warmup-epochs', '0', '--output', 'NEW'],
    'pretrain': ['mae_small', '--model', 'ssl_vit', '--data', 'npz:set.npz', '--epochs', '1', '--warmup-epochs', '0',
                 '--output', 'NEW'],
    'plot-fractions': ['NEW'], 'eval': ['cct_2_3x2.digits', '--data', 'npz:set.npz'],
    'analyze attention': ['cct_2_3x2.digits', '--data', 'npz:set.npz', '--output', 'NEW'],
    'analyze similarity': ['cct_2_3x2.digits', '--data', 'npz:set.npz', '--output', 'NEW'],
    'analyze maps': ['cct_2_3x2.digits', '--files', 'image.png', '--output', 'NEW'],
    'analyze pooling': ['cct_2_3x2.digits', '--data', 'npz:set.npz', '--output', 'NEW'],
    'analyze temperatures': ['sl_vit.untrained'], 'analyze positions': ['cct_2_3x2.digits', '--output', 'NEW'],
    'analyze support': ['cct_2_3x2'], 'count': ['fast_cnn_half'], 'compare': ['fast_cnn_half', '--no-speed'],
    'export': ['cct_2_3x2.digits', 'NEW/x.pt2'], 'demo': ['cct_2_3x2.digits', '--output', 'NEW'],
    'publish': ['cct_2_3x2.digits', '--namespace', 'me', '--dry-run', '--output', 'NEW'], 'autoload': ['status']}


def parsers(parser: argparse.ArgumentParser, name: str = '') -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of all commands, and of the kinds of one, by their names."""
    found = {name: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found = {}
            for word, inner in action.choices.items():
                found |= parsers(inner, f'{name} {word}'.strip())
    return found


PARSERS = parsers(_parser())


def texts(action: argparse.Action) -> Any:
    """Draw texts for an option or an argument: odd ones, or one of its choices."""
    most = next((LENGTHS[option] for option in action.option_strings if option in LENGTHS), None)
    return st.sampled_from([text for text in (*TEXTS, *(action.choices or ())) if most is None or is_short(text, most)])


def is_short(text: str, most: float) -> bool:
    try:
        return not most < float(text) < 1e15
    except ValueError:
        return True


def test_every_command_has_a_base() -> None:
    assert set(BASES) == set(PARSERS)


@pytest.mark.parametrize('argv', [
    ['train', '--model-args', '{1: 2}'], ['train', '--epochs', '9' * 20], ['train', '--img-size', '100000'],
    ['train', '--crop-padding', '1000000'], ['train', '--batch-size', '9' * 20], ['train', '--fraction=--'],
    ['train', '--auto-augment', 'rand-m9-n99999'], ['train', '--output', 'a\udcffb'], ['train', '--output', 'a\0b'],
    ['pretrain', '--method-args', '{1: 1}'], ['pretrain', '--data', 'npz:three.npz'], ['export', '\udcff.pt2'],
    ['count', '--batch-size', '9' * 20], ['analyze positions', '--format=--'], ['eval', '--img-size', '100000'],
    ['compare', '--batch-size', '9' * 12], ['eval', '--img-size', '4096'], ['train', '--img-size', '4096'],
    ['pretrain', '--img-size', '4096']], ids=lambda argv: ' '.join(argv).encode('ascii', 'replace').decode()[:40])
def test_what_cannot_be(argv: list[str], place: Path) -> None:
    """Values that were tracebacks, or never ended."""
    np.savez(place / 'three.npz', train_images=fakes.pixels(3, 8, 8), train_labels=np.arange(3))
    name, *more = argv
    base = BASES[name][:1] if name == 'export' else BASES[name]
    assert command(*name.split(), *(word.replace('NEW', 'new') for word in base), *more)[0] == 2


def test_large_images_say_what_they_cost(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_memory('cct_2_3x2 at 2048 pixels', torch.device('cpu'), 6, 2 ** 20, 3e9)
    assert 'takes about 0.0 GiB of memory for a batch of 6, and 3 G multiply-adds an image' in capfd.readouterr().err


@pytest.mark.parametrize('variables', [{'WORLD_SIZE': 'x'}, {'WORLD_SIZE': '2'}, {'WORLD_SIZE': '2', 'RANK': '5'}],
                         ids=str)
def test_processes_that_cannot_be_joined(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert 'torchrun' in command('eval', 'cct_2_3x2.digits', '--data', 'digits', '--device', 'cpu')[1]


def test_warnings_are_one_line_without_what_steers_a_terminal() -> None:
    record = logging.LogRecord('a', logging.WARNING, '', 0, 'Skipped %s\n.', ('\x1b[31m',), None)
    assert _Printable().format(record) == r'Skipped \x1b[31m .'


@cases(15)
@given(data=st.data())
def test_odd_options(data: st.DataObject, place: Path) -> None:
    name = data.draw(st.sampled_from(sorted({*BASES} - {'autoload'})))     # `on` would change this Python
    actions = [action for action in PARSERS[name]._actions if not TAKES_LONG & {*action.option_strings}]
    argv = [str(place / f'new{len(list(place.iterdir()))}') + word[3:] if word.startswith('NEW') else word
            for word in BASES[name]]
    for action in data.draw(st.lists(st.sampled_from(actions), max_size=3)) if actions else ():
        count = 0 if action.nargs == 0 else data.draw(st.integers(1, 2)) if action.nargs in ('+', '*') else 1
        values = [data.draw(texts(action)) for _ in range(count)]
        if action.option_strings:
            option = data.draw(st.sampled_from(action.option_strings))
            argv += [f'{option}={values[0]}'] if len(values) == 1 and data.draw(st.booleans()) else [option, *values]
        elif argv and not argv[0].startswith('-'):
            argv[data.draw(st.integers(0, min(1, len(argv) - 1)))] = values[0]
    assert '\x1b' not in command(*name.split(), *argv)[1]
