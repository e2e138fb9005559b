"""`tinyvit-zoo autoload` calls what it says."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tinyvit_zoo import autoload

Run = Callable[..., str]


def test_autoload_calls_what_it_says(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / 'start-up.pth'
    monkeypatch.setattr(autoload, 'switch_on', lambda: file)
    monkeypatch.setattr(autoload, 'status', lambda: autoload.Status(True, file, True))
    assert str(file) in run('autoload', 'on')
    assert run('autoload', 'status') == f'{autoload.Status(True, file, True)}\n'
    for was_on, said in ((True, 'autoload is off\n'), (False, 'autoload was off already\n')):
        monkeypatch.setattr(autoload, 'switch_off', lambda was_on=was_on: was_on)
        assert run('autoload', 'off') == said
