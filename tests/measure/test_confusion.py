"""The confusion matrix as a picture."""
from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyvit_zoo.measure import confusion
from tinyvit_zoo.measure.confusion import plot_confusion
from tinyvit_zoo.runtime.picture import write_picture


def test_picture_shows_shares_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(confusion, 'write_picture', lambda *args: figures.append(args[0]) or write_picture(*args))
    plot_confusion([[3, 1, 0], [0, 5, 5], [0, 0, 0]], ['a', 'b', 'c'], 'title', tmp_path / 'm.svg')
    axes = figures[0].axes[0]
    assert np.allclose(axes.images[0].get_array(), [[75, 25, 0], [0, 50, 50], [0, 0, 0]])
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {
        ((0, 0), '75.0'), ((1, 0), '25.0'), ((1, 1), '50.0'), ((2, 1), '50.0')}
    assert [t.get_text() for t in axes.get_yticklabels()] == ['a', 'b', 'c'] and axes.get_title() == 'title'
    assert (tmp_path / 'm.svg').read_text().startswith('<?xml') and len(list(tmp_path.iterdir())) == 1


def test_names_of_a_hundred_classes_do_not_touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(confusion, 'write_picture', lambda *args: figures.append(args[0]) or write_picture(*args))
    plot_confusion(np.eye(100, dtype=int), [f'class {i}' for i in range(100)], '', tmp_path / 'm.png')
    boxes = [label.get_window_extent() for label in figures[0].axes[0].get_yticklabels()]
    assert len(boxes) == 100 and boxes[0].height > 6
    gaps = [above.y0 - below.y1 for above, below in pairwise(boxes)]
    assert min(gaps) > -1       # pixels
