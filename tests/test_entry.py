"""What a command sets up before torch is imported, and only a command."""
import os
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tinyvit_zoo import entry
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.entry import is_busy, is_command


@pytest.mark.parametrize(('argv', 'whole', 'expected'), [
    (['/usr/bin/tinyvit-zoo', 'list'], ['python', '/usr/bin/tinyvit-zoo', 'list'], True),
    (['tinyvit-zoo.exe'], ['tinyvit-zoo.exe'], True), (['-m', 'x'], ['python', '-u', '-m', 'tinyvit_zoo', 'x'], True),
    (['-m', 'tinyvit_zoo'], ['python', '-m', 'pytest', 'tinyvit_zoo'], False),
    (['train.py'], ['python', 'train.py'], False),
    ([''], ['python'], False), ([], ['program'], False)])
def test_what_is_a_command(argv: list[str], whole: list[str], expected: bool) -> None:
    assert is_command(argv, whole) == expected


@pytest.mark.parametrize(('text', 'expected'), [
    ('0.00 0.01 0.05 1/99 8', False), ('0.00 0.01 0.05 3/99 8', True), ('0.00', False), (None, False)])
def test_what_is_busy(tmp_path: Path, text: str | None, expected: bool) -> None:
    """By the processes of this moment; the averages of a minute come late."""
    if text is not None:
        (tmp_path / 'loadavg').write_text(text)
    assert is_busy(str(tmp_path / 'loadavg')) == expected


@pytest.mark.parametrize('given', [{}, {'OMP_WAIT_POLICY': 'active'}, {'GOMP_SPINCOUNT': '5'}])
def test_a_value_that_is_set_wins(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', ['tinyvit-zoo', 'list'])
    monkeypatch.setattr(os, 'environ', dict(given))
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    runpy.run_path(entry.__file__)
    assert os.environ == given or (not given and len(os.environ) == 1)


def test_as_a_module_it_sets_openmp_and_hands_on_the_exit_code() -> None:
    """Threads sleep beside a process that computes."""
    other = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    env = {key: value for key, value in os.environ.items() if key not in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}
    try:
        done = subprocess.run([sys.executable, '-m', 'tinyvit_zoo', 'info', 'cct_7_3x9'], capture_output=True,
                              text=True, env={**env, 'OMP_DISPLAY_ENV': 'verbose'})
    finally:
        other.kill()
        other.wait()
    assert (done.returncode, done.stdout) == (2, '')
    *shown, last = done.stderr.strip().splitlines()
    assert last.startswith("tinyvit-zoo: There is no model 'cct_7_3x9'.")
    if sys.platform == 'linux':     # where libgomp says what it read
        assert "OMP_WAIT_POLICY = 'PASSIVE'" in '\n'.join(shown)


def test_a_removed_folder_is_one_line(tmp_path: Path) -> None:
    """Of ours: MKL would end the import of torch there."""
    command = f'mkdir gone; cd gone; rmdir ../gone; exec {shlex.quote(sys.executable)} -m tinyvit_zoo list'
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(Path(entry.__file__).parents[1])})
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'tinyvit-zoo: The current folder has been removed: change to another one.\n'


def test_a_library_that_cannot_be_imported_is_one_line() -> None:
    """Of a command; a program gets the traceback."""
    for argv, lines in ((['-m', 'tinyvit_zoo', 'list'], 1), (['-c', 'import tinyvit_zoo'], 2)):
        done = subprocess.run([sys.executable, *argv], capture_output=True, text=True,
                              env={**os.environ, 'TQDM_MININTERVAL': 'often'})
        assert done.returncode == 3 - lines and min(done.stderr.count('\n'), 2) == lines
        assert "could not convert string to float: 'often'" in done.stderr


def test_ctrl_c_ends_the_imports_without_a_traceback(tmp_path: Path) -> None:
    """As a module and as a script; a program that imports the package keeps its own handler."""
    torch = 'import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint("goes on")\n'
    (tmp_path / 'torch.py').write_text(torch)     # the one of these commands
    (tmp_path / 'tinyvit-zoo').write_text('from tinyvit_zoo.cli.main import main\n')
    for argv in (['-m', 'tinyvit_zoo'], [str(tmp_path / 'tinyvit-zoo')], ['-c', 'import tinyvit_zoo']):
        done = subprocess.run([sys.executable, *argv, 'list'], capture_output=True, text=True, env={
            **os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{Path(entry.__file__).parents[1]}'},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))   # which shells ignore in the background
        if argv[0] != '-c':
            assert (done.returncode, done.stdout, done.stderr) == (130, '', '')
    assert 'KeyboardInterrupt' in done.stderr


def test_a_command_takes_ctrl_c_over(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, entry.stop)
    try:
        main(['list', 'cct_2'])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
