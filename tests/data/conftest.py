"""Decoded images go to a folder of the test's own."""
from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('TINYVIT_ZOO_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'images'
