"""Every command has a help with examples; a mistake is one line, exit code 2 and nothing on stdout."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tinyvit_zoo
from tinyvit_zoo import autoload
from tinyvit_zoo.cli.main import COMMANDS, main

Run = Callable[..., str]


@pytest.mark.parametrize(('argv', 'said'), [
    (['lst'], "'list'"), ([], 'COMMAND'), (['autoload', 'maybe'], "'status'"),
    (['list', '--wieghts'], "no option '--wieghts'. Did you mean --weights"), (['info', 'a', 'b'], "no argument 'b'"),
])
def test_a_mistake_is_one_line(refused: Run, argv: list[str], said: str) -> None:
    assert said in refused(*argv)


def test_a_system_error_is_one_line_and_ctrl_c_none(
        capsys: pytest.CaptureFixture[str], refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: BaseException) -> None:
        raise error

    monkeypatch.setattr(autoload, 'status', lambda: fail(PermissionError(13, 'Permission denied', '/some/file')))
    assert refused('autoload', 'status') == 'tinyvit-zoo: /some/file: Permission denied\n'
    monkeypatch.setattr(autoload, 'status', lambda: fail(KeyboardInterrupt()))
    assert main(['autoload', 'status']) == 130
    assert capsys.readouterr() == ('', '')


def test_a_closed_pipe_is_no_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, 'w') as pipe:
        monkeypatch.setattr(sys, 'stdout', pipe)
        assert main(['list', 'cct_2']) == 141
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: command.NAME)
def test_every_help_has_an_example(capsys: pytest.CaptureFixture[str], command: Any) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command.NAME, '--help'])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert f'  tinyvit-zoo {command.NAME} ' in text.partition('example')[2]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(['--version'])
    assert capsys.readouterr().out == f'tinyvit-zoo {tinyvit_zoo.__version__}\n'


def test_as_a_module_it_hands_on_the_exit_code() -> None:
    done = subprocess.run([sys.executable, '-m', 'tinyvit_zoo', 'info', 'cct_7_3x9'], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)


# -- commands of other packages ----------------------------------------------------------------------------------------
@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a module on the path, with an entry point that names it as a command."""
    def install_command(name: str, code: str) -> None:
        (tmp_path / f'{name}_command.py').write_text(code)
        info = tmp_path / f'{name}-1.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Name: {name}\nVersion: 1\n')
        (info / 'entry_points.txt').write_text(f'[tinyvit_zoo.commands]\n{name} = {name}_command\n')

    monkeypatch.syspath_prepend(str(tmp_path))
    return install_command


GOOD = '''
NAME, SUMMARY, EXAMPLES = 'greet', 'greet 100 % of the world', 'tinyvit-zoo greet'
def add(parser): parser.add_argument('--who', default='world')
def run(args): return f'hello {args.who}'
'''


def test_a_command_comes_from_outside(
        run: Run, refused: Run, install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install('greet', GOOD)
    assert run('greet', '--who', 'you') == 'hello you\n'
    assert 'Did you mean --who' in refused('greet', '--whom', 'you')
    with pytest.raises(SystemExit):
        main(['--help'])
    assert 'greet 100 % of the world' in capsys.readouterr().out


@pytest.mark.parametrize(('code', 'said'), [
    ('import nothing_of_this_name', 'ModuleNotFoundError'), ('1 / 0', 'ZeroDivisionError: division'),
    ("NAME = 'broken'", 'AttributeError'), (GOOD.replace('def run', 'def walk'), "attribute 'run'"),
    (GOOD.replace('def add(parser): ', 'def add(parser): 1 / 0; '), 'ZeroDivision'),
])
def test_a_broken_command_is_one_line_and_breaks_no_other(
        run: Run, refused: Run, install: Callable[..., None], code: str, said: str,
        monkeypatch: pytest.MonkeyPatch) -> None:
    install('broken', code)
    monkeypatch.delitem(sys.modules, 'broken_command', raising=False)
    assert said in refused('broken') and said in refused('broken', '--option', 'value')
    assert run('list', 'cct_2_3x2.digits')


def test_a_command_from_outside_replaces_none_of_ours(run: Run, install: Callable[..., None]) -> None:
    install('greet_too', GOOD.replace("'greet'", "'recipes'"))
    assert 'hello' not in run('recipes')
