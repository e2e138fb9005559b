"""Several recipes in one command."""
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tinyvit_zoo.cli.main import _parser, main

NAMES = ['cct_2_3x2.digits', 'fast_cnn_half.c10']


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for Python: notes its arguments and threads, and waits, or fails, by an option."""
    path = tmp_path / 'python'
    path.write_text(f'''#!/bin/sh
echo "$OMP_NUM_THREADS $*" >> {tmp_path}/calls
case "$*" in
*--lr*) trap 'echo "tinyvit-zoo: stopped"; exit 143' TERM
    touch {tmp_path}/waiting; for i in $(seq 100); do sleep 0.05; done;;
*{NAMES[0]}*--seed*) echo "tinyvit-zoo: no room" >&2; exit 2;;
esac
echo "{NAMES[0]}: epoch 1"; echo "top-1 12 %"
''')
    path.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(path))
    return tmp_path


def test_one_that_fails_ends_no_other(child: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['train', *NAMES, '--output', 'runs', '--seed', '3']) == 1
    out, err = capsys.readouterr()
    one, two = NAMES
    assert out.splitlines()[-2:] == [f'{one}   runs/{one}   no room', f'{two}  runs/{two}  top-1 12 %']
    assert f'{NAMES[1]}: top-1 12 %' in out
    assert err == f'tinyvit-zoo: 1 of 2 trainings failed: {NAMES[0]}.\n'


def test_the_options_of_each(child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: range(6))
    command = ['train', '--jobs=2', '--from', NAMES[0], '--output', 'there', '--resume', '--epochs=9', '--', *NAMES]
    assert main(command) == 0
    calls = sorted((child / 'calls').read_text().splitlines())
    assert calls == [f'3 -m tinyvit_zoo train {name} --from {NAMES[0]} --resume --epochs=9 --output there/{name}'
                     for name in NAMES]
    for call in calls:
        assert _parser().parse_args(call.split()[3:]).recipe[0] in NAMES


def test_a_signal_is_passed_on(child: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        while not (child / 'waiting').exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(SystemExit) as stopped:
        main(['train', NAMES[1], NAMES[0], '--jobs', '1', '--lr', '1'])
    thread.join()
    out, err = capsys.readouterr()
    assert stopped.value.code == 143 and err.count('\n') == 1 and 'continue with --resume' in err
    assert 'stopped' in out and (child / 'calls').read_text().count('\n') == 1      # the other has not begun


@pytest.mark.parametrize(('more', 'said'), [
    ([NAMES[0]], 'given twice'), (['cct_2_3x2.digit'], 'no recipe'), (['--jobs', '0', NAMES[1]], 'from 1 to 999,999')])
def test_bad_input(child: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str) -> None:
    assert main(['train', NAMES[0], *more]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count('\n') == 1 and not (child / 'calls').exists()
