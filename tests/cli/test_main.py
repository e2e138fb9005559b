"""Every command has a help with examples; a mistake is one line, exit code 2 and nothing on stdout."""
from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tinyvit_zoo
from tinyvit_zoo import autoload
from tinyvit_zoo.cli.main import COMMANDS, main
from tinyvit_zoo.runtime.files import written_whole

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
    assert refused('autoload', 'status') == (
        'tinyvit-zoo: /some/file cannot be read or written (Permission denied): choose another place.\n')
    monkeypatch.setattr(autoload, 'status', lambda: fail(KeyboardInterrupt()))
    assert main(['autoload', 'status']) == 130
    assert capsys.readouterr() == ('', '')


def test_a_system_error_without_a_file_says_what_to_do(
        refused: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / 'gone').mkdir()
    monkeypatch.chdir(tmp_path / 'gone')
    (tmp_path / 'gone').rmdir()
    monkeypatch.setattr(autoload, 'status', os.getcwd)
    assert 'The current folder has been removed: change to another one' in refused('autoload', 'status')
    monkeypatch.setattr(tempfile, 'tempdir', None)
    monkeypatch.setattr(tempfile, '_candidate_tempdir_list', lambda: ['/nowhere'])
    monkeypatch.setattr(autoload, 'status', tempfile.gettempdir)
    assert "found in ['/nowhere']: set TMPDIR to a folder" in refused('autoload', 'status')


def test_a_library_that_a_command_cannot_import_is_one_line(
        refused: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(autoload, 'status', lambda: importlib.import_module('brittle_library'))
    for fault, told in (("int('often')", 'ValueError: invalid literal'), ("raise RuntimeError('no nms')", 'no nms'),
                        ("raise OSError('no library')", 'no library')):
        (tmp_path / 'brittle_library.py').write_text(fault)
        message = refused('autoload', 'status')
        assert 'brittle_library cannot be imported (' in message and told in message
    monkeypatch.setattr(autoload, 'status', lambda: int('often'))
    with pytest.raises(ValueError, match='often'):      # a fault of ours
        main(['autoload', 'status'])


def test_a_system_error_of_a_thread_is_not_printed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library's thread that writes to a full disk; other errors of threads are faults of ours."""
    printed: list[type[BaseException]] = []
    monkeypatch.setattr(threading, 'excepthook', lambda args: printed.append(args.exc_type))

    def status() -> str:
        for error in (OSError(28, 'No space left on device'), ValueError('x')):
            def fail(error: Exception = error) -> None:
                raise error
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
        return ''
    monkeypatch.setattr(autoload, 'status', status)
    run('autoload', 'status')
    assert printed == [ValueError]


def test_sigterm_removes_what_is_half_written(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def status() -> str:
        with written_whole(tmp_path / 'a') as partial:
            partial.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(9)
        return ''
    monkeypatch.setattr(autoload, 'status', status)
    assert main(['autoload', 'status']) == 143 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err == 'tinyvit-zoo: stopped by SIGTERM.\n'
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_closed_pipe_is_no_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, 'w') as pipe:
        monkeypatch.setattr(sys, 'stdout', pipe)
        assert main(['list', 'cct_2']) == 141
    assert capsys.readouterr().err == ''


def test_streams_that_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by `>&-`."""
    monkeypatch.setattr(sys, 'stdout', None)
    monkeypatch.setattr(sys, 'stderr', None)
    assert main(['list', 'cct_2']) == 0 and main(['info', 'nothing']) == 2


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


# -- commands of other packages ----------------------------------------------------------------------------------------
@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a module on the path, with an entry point that names it as a plugin."""
    def install_command(name: str, code: str) -> None:
        (tmp_path / f'{name}_command.py').write_text(code)
        info = tmp_path / f'{name}-1.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Name: {name}\nVersion: 1\n')
        (info / 'entry_points.txt').write_text(f'[tinyvit_zoo.plugins]\n{name} = {name}_command\n')

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


@pytest.mark.parametrize(('code', 'reason'), [
    ('import nothing_of_this_name', 'ModuleNotFoundError'), ('1 / 0', 'ZeroDivisionError: division'),
    ('raise SystemExit("no licence")', 'SystemExit: no licence'),
    *((GOOD.replace(part, f'not_{part}', 1), f"attribute '{part}'") for part in ('NAME', 'SUMMARY', 'EXAMPLES')),
    (GOOD.replace('def run', 'def walk'), "attribute 'run'"), (GOOD.replace('def add', 'def put'), "attribute 'add'"),
    (GOOD.replace('def add(parser): ', 'def add(parser): 1 / 0; '), 'ZeroDivision'),
])
def test_a_broken_plugin_is_one_line_and_breaks_no_command(
        install: Callable[..., None], code: str, reason: str, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    install('broken', code)
    monkeypatch.delitem(sys.modules, 'broken_command', raising=False)
    assert main(['recipes', 'cct_7_3x1.c10']) == 0
    out, err = capsys.readouterr()
    assert 'cct_7_3x1.c10' in out and err.count('\n') == 1
    assert 'The plugin broken_command is broken' in err and reason in err and 'update or uninstall' in err


def test_a_plugin_that_is_no_command_may_use_its_words(run: Run, install: Callable[..., None]) -> None:
    install('family', "NAME = 'family'\ndef add(a, b): return a + b")
    assert run('recipes')


def test_a_command_from_outside_replaces_none_of_ours(run: Run, install: Callable[..., None]) -> None:
    install('greet_too', GOOD.replace("'greet'", "'recipes'"))
    assert 'hello' not in run('recipes')
