"""Pictures: checked before they are drawn, written whole, the same bytes each time."""
from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

from tinyvit_zoo import ZooError
from tinyvit_zoo.runtime.files import check_picture, new_figure, write_picture


def test_a_picture_is_written_in_the_format_of_its_name(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    figure, axes = new_figure(1, 2, (2, 1))
    assert axes.shape == (1, 2)
    for name, start in (('a.png', b'\x89PNG'), ('a.svg', b'<?xml'), ('a.pdf', b'%PDF')):
        write_picture(figure, tmp_path / name, dpi=50)
        assert (tmp_path / name).read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 3
    assert 'matplotlib.pyplot' not in sys.modules or not sys.modules['matplotlib.pyplot'].get_fignums()


def test_dollars_begin_no_formula(tmp_path: Path) -> None:
    """In ticks, legends, titles and notes, as names of classes and folders have them."""
    pytest.importorskip('matplotlib')
    figure, ((axes,),) = new_figure(1, 1, (4, 4))
    name = r'$\frac{$'
    axes.plot([1, 10], [1, 2], label=name)
    axes.set(title=name, xlabel='a $x^2$', xscale='log')
    axes.set_yticks([1, 2], [name, '$x^2$'])
    axes.legend()
    axes.text(1, 1, name)
    figure.suptitle(name)
    write_picture(figure, tmp_path / 'a.svg')
    texts = (tmp_path / 'a.svg').read_text()
    assert texts.count(rf'<!-- {name} -->') == 5 and texts.count('x^2$ -->') == 2 and 'mathdefault' in texts


def test_letters_without_a_font_are_told_in_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip('matplotlib')
    figure, _ = new_figure(1, 1, (4, 4), 'plain, \u03a3')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        write_picture(figure, tmp_path / 'a.png')
        assert not caplog.messages
        figure.suptitle('\U0001fad8')    # DejaVu Sans has none
        write_picture(figure, tmp_path / 'a.png')
    assert [line.partition(':')[0] for line in caplog.messages] == [
        f'{tmp_path}/a.png shows boxes in place of some letters']


@pytest.mark.parametrize(('path', 'message'), [
    ('a.jpg', '--plot is .*a.jpg, expected a name that ends in .png or .pdf or .svg'),
    ('nowhere/a.png', 'no folder .*nowhere'),
])
def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        check_picture('--plot', tmp_path / path)


def test_a_missing_matplotlib_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(ZooError, match='pip install'):
        check_picture('--plot', tmp_path / 'a.png')
