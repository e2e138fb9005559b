"""What a command sets up before torch is imported, and only a command."""
import os
import subprocess
import sys

import pytest

from tinyvit_zoo.entry import is_command


@pytest.mark.parametrize(('argv', 'whole', 'expected'), [
    (['/usr/bin/tinyvit-zoo', 'list'], ['python', '/usr/bin/tinyvit-zoo', 'list'], True),
    (['tinyvit-zoo.exe'], ['tinyvit-zoo.exe'], True), (['-m', 'x'], ['python', '-u', '-m', 'tinyvit_zoo', 'x'], True),
    (['-m', 'tinyvit_zoo'], ['python', '-m', 'pytest', 'tinyvit_zoo'], False),
    (['train.py'], ['python', 'train.py'], False),
    ([''], ['python'], False), ([], ['program'], False)])
def test_what_is_a_command(argv: list[str], whole: list[str], expected: bool) -> None:
    assert is_command(argv, whole) == expected


@pytest.mark.skipif(sys.platform != 'linux', reason='libgomp says what it read')
@pytest.mark.parametrize(('given', 'policy'), [({}, 'PASSIVE'), ({'OMP_WAIT_POLICY': 'active'}, 'ACTIVE')])
def test_openmp_reads_what_a_command_sets(given: dict[str, str], policy: str) -> None:
    command = [sys.executable, '-m', 'tinyvit_zoo', '--version']
    done = subprocess.run(command, env={**os.environ, 'OMP_DISPLAY_ENV': 'true', **given}, capture_output=True,
                          text=True, check=True)
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr
