"""What the README and the pages show runs: Python as it is, commands by their own parsers, and small ones to their end.

Trainings are cut to an epoch, without curves; weights of the papers are replaced by random ones; exports are left to
their own tests.
"""
import argparse
import contextlib
import importlib.util
import io
import itertools
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import documents
import pytest
import timm
import torch
from documents import ROOT, Block
from fakes import image_folder
from PIL import Image

from tinyvit_zoo import api
from tinyvit_zoo.cli import main as cli
from tinyvit_zoo.methods import METHODS
from tinyvit_zoo.models import _build
from tinyvit_zoo.recipes import PRETRAININGS, RECIPES
from tinyvit_zoo.training.run_dir import Run
from tinyvit_zoo.weights import save_weights, weight_file

PAGES = documents.pages()
PROGRAMS = {  # that are not ours, and what their arguments must be
    'pip': r"install (-e )?('?\.?(tinyvit-zoo)?\[[\w,]+\]'?|\.)", 'ruff': r'check \.', 'lint-imports': '', 'mypy': '',
    'mkdocs': r'(serve|build --strict)', 'hf': 'auth login', 'scontrol': '.*', 'head': '.*'}
QUICK = ('list', 'info', 'recipes', 'publish', 'plot-fractions', 'count')
SMALL = ('digits', 'folder:photos', 'folder:more', 'csv:labels.csv')


class Parsed(Exception):
    """A command's arguments have been parsed."""


@pytest.fixture(scope='module')
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages speak of: photographs, runs, files."""
    folder = tmp_path_factory.mktemp('documents')
    for name in ('photos', 'more'):
        image_folder(folder / name, {'cat': 6, 'dog': 6}, 32)
    image_folder(folder, {'folder': 1}, 32)
    (folder / 'folder' / '000.png').rename(folder / 'folder' / '1.png')
    shutil.copy(ROOT / 'examples' / 'photos' / 'cat.jpg', folder / 'photo.jpg')
    Image.open(folder / 'photo.jpg').save(folder / 'photo.png')
    rows = [f'photos/{name}/{i:03}.png,{name}' for name in ('cat', 'dog') for i in range(6)]
    (folder / 'labels.csv').write_text('\n'.join(['path,labels', *rows]))
    torch.save(timm.create_model('cct_7_3x1').state_dict(), folder / 'mine.pth')
    with contextlib.chdir(folder):
        assert run(['train', '--model', 'cct_2_3x2', '--data', 'folder:photos', '--output', 'runs/mine'])[0] == 0
        assert run(['train', 'cct_2_3x2.digits', '--fraction', '0.1', '--output', 'runs/digits'])[0] == 0
    return folder


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, current; downloads give random weights."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def random_weights(cfg: dict[str, Any], cache_dir: Any = None) -> Path | None:
        if not cfg.get('url'):
            return weight_file(cfg, cache_dir)
        model = timm.create_model(cfg['architecture'], num_classes=cfg['num_classes'], img_size=cfg['input_size'][1:])
        save_weights(model.state_dict(), tmp_path / 'fetched.safetensors')
        return tmp_path / 'fetched.safetensors'

    monkeypatch.setattr(_build, 'weight_file', random_weights)
    monkeypatch.setattr(api, 'export_with_preprocessing', lambda loaded, path, *rest: {})
    monkeypatch.setattr(Run, 'draw', lambda self: (self.folder / 'curves.png').touch())
    return tmp_path


def run(argv: list[str]) -> tuple[int, str]:
    """Run `tinyvit-zoo` in this process; a training for an epoch. Return the exit code, and what it printed."""
    if argv[0] in ('train', 'pretrain'):
        argv = [*argv, '--epochs', '1', '--warmup-epochs', '0', '--device', 'cpu', '--precision', 'fp32']
        for option in ('--minutes', '--track'):
            if option in argv:
                del argv[argv.index(option):argv.index(option) + 2]
        if {'digits', 'cct_2_3x2.digits'} & {*argv} and '--fraction' not in argv:
            argv += ['--fraction', '0.1']
        if '--output' in argv and '--resume' not in argv:
            shutil.rmtree(argv[argv.index('--output') + 1], ignore_errors=True)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        return cli.main(argv), out.getvalue()


def is_small(argv: list[str]) -> bool:
    """Return whether a command takes a second or so."""
    data = argv[argv.index('--data') + 1] if '--data' in argv else 'digits'
    if argv[0] in ('train', 'pretrain'):
        large = '--track' in argv or any('cct_7' in word or 'resnet' in word for word in argv)
        return data in SMALL and not large and ('--model' in argv or '--from' in argv or 'cct_2_3x2.digits' in argv)
    if argv[0] == 'compare':
        return '--no-speed' in argv
    if argv[0] in ('eval', 'analyze', 'predict'):
        slow = {'--corruptions', '--attack', '--all', '--probe'} & {*argv}
        return data in SMALL and not slow and not any('cct_7' in word for word in argv) and len(argv) > 2
    return argv[0] in QUICK


def check_names(argv: list[str]) -> None:
    """Recipes, models and weights that a command names are there."""
    for before, word in itertools.pairwise(['', *argv]):
        known = {} if before == '--model' else {**RECIPES, **PRETRAININGS, **METHODS}
        if re.fullmatch(r'(vit_lite|cct|cvt|sl|plain|ssl|mae|fast)_[a-z0-9_]+(\.\w+)?', word):
            weights = word in known or timm.is_model(word.partition('.')[0])
            assert weights and (word in known or '.' not in word or word.endswith('.untrained')
                                or word in timm.list_pretrained()), f'there is no {word}'


def check_command(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the arguments of a command by its own parser; of another program, by what the documents use."""
    program, *rest = argv
    if program in ('torchrun', 'srun'):
        assert '-m' in rest and rest[rest.index('-m') + 1] == 'tinyvit_zoo'
        program, rest = 'tinyvit-zoo', rest[rest.index('-m') + 2:]
    if program == 'tinyvit-zoo':
        with monkeypatch.context() as patched:
            patched.setattr(cli, '_run', lambda args: 0)
            assert '--help' in rest or rest[0] == '--version' or cli.main(rest) == 0, argv
        check_names(rest)
    elif program == 'python' and rest[0].startswith('tools/'):
        check_tool(rest, monkeypatch)
    elif program == 'pytest' or rest[:2] == ['-m', 'pytest']:
        assert all((ROOT / word).exists() for word in rest if word.startswith('tests/'))
    elif program.startswith('tools/'):
        assert (ROOT / program).exists()
    else:
        assert program in PROGRAMS and re.fullmatch(PROGRAMS[program], ' '.join(rest)), argv


def check_tool(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(parse: Callable[..., Any]) -> Callable[..., Any]:
        def parse_alone(*args: Any, **kwargs: Any) -> None:
            parse(*args, **kwargs)
            raise Parsed
        return parse_alone

    with monkeypatch.context() as patched, pytest.raises(Parsed):
        for name in ('parse_args', 'parse_intermixed_args'):
            patched.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))
        patched.setattr(sys, 'argv', argv)
        patched.syspath_prepend(ROOT / 'tools')
        runpy.run_path(str(ROOT / argv[0]), run_name='__main__')


def run_python(block: Block, names: dict[str, Any], page: str) -> None:
    """Run a block as it is, but for an epoch in place of minutes."""
    libraries = {*re.findall(r'^(?:from|import) (\w+)', block.code, re.M), block.reason or 'torch'}
    if block.note == 'not run' or not all(map(importlib.util.find_spec, libraries)):
        compile(block.code, page, 'exec')
        return
    for output in re.findall(r"output='(\S+?)'", block.code):
        shutil.rmtree(output, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(block.code.replace('minutes=10', 'epochs=1'), page, 'exec'), names)


@pytest.mark.parametrize('page', [name for name in PAGES if name != 'extending.md'])
def test_a_page(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    names: dict[str, Any] = {'__name__': 'page'}
    for block in documents.blocks(PAGES[page]):
        if block.language == 'python':
            run_python(block, names, page)
            continue
        found = documents.commands(block)
        assert found, f'no command in:\n{block.code}'
        for argv in found:
            check_command(argv, monkeypatch)
            if argv[0] == 'tinyvit-zoo' and is_small(argv[1:]):
                code, out = run(argv[1:])
                assert code == 0, argv
                if block.language == 'console' and len(found) == 1:
                    assert documents.shape(out) == documents.shape(block.code)[1:], f'{argv} prints:\n{out}'


def test_examples_of_help(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in cli.COMMANDS:
        for argv in documents.commands(Block('sh', command.EXAMPLES, '', '')):
            check_command(argv, monkeypatch)


@pytest.mark.parametrize('name', ['cct_2_3x2', 'ssl_vit_64', 'mae_vit_c10', 'fast_cnn_half'])
def test_pages_of_models(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page for each model is made alike: these are one of ours, an encoder, and two without weights."""
    monkeypatch.syspath_prepend(ROOT / 'tools')
    import build_site
    monkeypatch.setattr(build_site, 'training_cost', lambda name: '1 PFLOP')
    text = build_site.model_page(name)
    for block in documents.blocks(text):
        if block.language == 'python':
            run_python(block, {}, name)
        else:
            for argv in documents.commands(block):
                check_command(argv, monkeypatch)
    for weight in build_site.update_docs.weights_of(name):
        assert f'"Card of {weight.name}"' in text and weight.source in text and weight.note in text
