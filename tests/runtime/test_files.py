"""Files are there whole or not at all, whatever goes wrong."""
from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tinyvit_zoo import ZooError
from tinyvit_zoo.runtime.files import append, require_matplotlib, write_whole, written_whole


def test_the_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / 'a.png'
    path.write_bytes(b'old')
    with written_whole(path) as partial:
        assert partial.parent == tmp_path and partial.suffix == '.png' and partial.name.startswith('.')
        partial.write_bytes(b'new')
        assert path.read_bytes() == b'old'
    assert path.read_bytes() == b'new' and list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    (tmp_path / 'repository' / 'old').mkdir(parents=True)
    with written_whole(tmp_path / 'repository') as partial:
        partial.mkdir()
        (partial / 'a').touch()
        assert (tmp_path / 'repository' / 'old').exists()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*')] == ['repository', 'repository/a']


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        with written_whole(tmp_path / 'a[1].png') as partial:
            partial.mkdir()
            (partial / 'b').touch()
            os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    left, = tmp_path.iterdir()
    others = [left.with_name(left.name + 'x'), tmp_path / written_name(tmp_path / 'a[1].png', os.getppid())]
    for path in others:
        path.touch()
    with written_whole(tmp_path / 'a[1].png') as partial:   # not waited for: it counts as living
        partial.touch()
    assert left.exists()
    os.waitpid(child, 0)
    write_whole(tmp_path / 'a[1].png', b'')
    assert {*tmp_path.iterdir()} == {*others, tmp_path / 'a[1].png'}


def written_name(path: Path, process: int) -> str:
    with written_whole(path) as partial:
        partial.touch()
    return partial.name.replace(f'-{os.getpid()}.', f'-{process}.')


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize('folder', [False, True])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException], folder: bool) -> None:
    with pytest.raises(error), written_whole(tmp_path / 'a') as partial:
        if folder:
            partial.mkdir()
            (partial / 'b').touch()
        else:
            partial.touch()
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('error', 'remedy'), [
    (OSError(28, 'No space left on device'), ': free disk space, or choose another place.'),
    (PermissionError(13, 'Permission denied'), ' (Permission denied): choose another place.'),
    (IsADirectoryError(21, 'Is a directory'), ': remove it, or choose another place.'),
    (shutil.Error([('a', 'b', "[Errno 28] No space left on device: 'a' -> 'b'")]),
     "'b'): free disk space, or choose another place."),
    (FileNotFoundError(2, "No usable temporary directory found in ['/x']"), "['/x']): set TMPDIR to a folder that can "
     'be written.')])
def test_the_remedy_is_that_of_the_error(error: OSError, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError) as caught, written_whole(tmp_path / 'a'):
        raise error
    assert str(caught.value).endswith(remedy)


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, 'No space left on device')

    (tmp_path / 'a').write_bytes(b'old')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(ZooError, match=r'a cannot be written \(No space left on device\): free disk space'):
        write_whole(tmp_path / 'a', b'new')
    assert (tmp_path / 'a').read_bytes() == b'old' and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_copied_is_one_short_line(tmp_path: Path) -> None:
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'b').symlink_to('nowhere')
    with pytest.raises(ZooError, match=r"c cannot be written \(\[Errno 2\] No such file") as error, written_whole(
            tmp_path / 'c') as partial:
        shutil.copytree(tmp_path / 'a', partial)
    assert '[(' not in str(error.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match='No such file or directory'):
        write_whole(tmp_path / 'nowhere' / 'a', b'')


def test_a_matplotlib_with_wrong_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'matplotlib.py').write_text('raise ValueError("not a valid backend")')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'matplotlib', raising=False)
    with pytest.raises(ZooError, match=r'not a valid backend.*MPLBACKEND'):
        require_matplotlib()


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_nothing_is_appended_to_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'log')
    with pytest.raises(ZooError, match='no regular file'):
        append(tmp_path / 'log', 'a line')


def test_files_that_belong_together_keep_that_in_their_names(tmp_path: Path) -> None:
    """OpenVINO writes the weights beside, by the name of the other file."""
    with written_whole(tmp_path / 'a.xml') as first, written_whole(tmp_path / 'a.bin') as second:
        for path in (first, second):
            path.touch()
        assert first.with_suffix('.bin') == second
