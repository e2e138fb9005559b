"""What a command sets up before torch is imported, and only a command."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.skipif(sys.platform != 'linux', reason='libgomp says what it read')
def test_openmp_reads_what_a_command_sets() -> None:
    """Sleeping threads beside a process that computes; a value that is set already wins."""
    def display(**given: str) -> str:
        env = {key: value for key, value in os.environ.items() if key not in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}
        done = subprocess.run([sys.executable, '-m', 'tinyvit_zoo', '--version'], capture_output=True, text=True,
                              env={**env, 'OMP_DISPLAY_ENV': 'verbose', **given}, check=True)
        return done.stderr

    other = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try:
        assert "OMP_WAIT_POLICY = 'PASSIVE'" in display() and "'ACTIVE'" in display(OMP_WAIT_POLICY='active')
    finally:
        other.kill()
        other.wait()
