"""Damaged arrays and images, and folders of links, pipes and odd names: the same images, or one line."""
import io
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from fuzz_cases import cases, damaged, outcome
from hypothesis import given, strategies as st
from PIL import Image

from tinyvit_zoo.data.images import FileImages, check_cached, decode, decode_cached
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.data.splits import Split
from tinyvit_zoo.measure.prediction import image_files, problem_of


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('fuzz')


def npz(compressed: bool, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def everything(path: Path) -> list[torch.Tensor]:
    source = open_source(f'npz:{path}')
    splits = [split for split in (source.train, source.val, source.test) if isinstance(split, Split)]
    return [tensor for split in splits for tensor in (decode(split.images, (5, 6), 3), split.labels)]


ARRAYS = {'train_images': fakes.pixels(6, 5, 6, 3), 'train_labels': np.array([0, 1, 2, 0, 1, 2]),
          'test_images': fakes.pixels(3, 5, 6, 3), 'test_labels': np.array([[2], [1], [0]])}
KINDS: Any = st.sampled_from(['u1', 'u8', 'i8', 'f4', 'U3', 'bool', 'c8', 'S2', 'M8[s]', 'O', [('a', 'i4')]])
SHAPES: Any = st.lists(st.sampled_from([0, 1, 2, 3, 6]), max_size=5)
VALUES: Any = st.sampled_from([-1, 0, 1, 2, 6, 10 ** 6, 10 ** 12, 2 ** 63 - 1])


@cases(80)
@given(data=st.data())
def test_damaged_arrays(data: st.DataObject, folder: Path) -> None:
    path = folder / 'damaged.npz'
    path.write_bytes(npz(data.draw(st.booleans()), **ARRAYS))
    expected = everything(path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    found, message = outcome(lambda: everything(path))
    assert message or (found and all(torch.equal(*pair) for pair in zip(found, expected, strict=True)))


def test_arrays_that_left_the_directory(folder: Path) -> None:
    """A renamed pair would be a set without test images."""
    path, content = folder / 'renamed.npz', npz(False, **ARRAYS)
    start = content.index(b'PK\1\2')
    for changed in (content[start:].replace(b'test_', b'uest_'), content[start:].replace(b'PK\1\2', b'PK\0\2', 1)):
        path.write_bytes(content[:start] + changed)
        assert 'is damaged' in (outcome(lambda: everything(path))[1] or '')


@cases(60)
@given(data=st.data())
def test_odd_arrays(data: st.DataObject, folder: Path) -> None:
    arrays = dict(ARRAYS)
    for name in data.draw(st.lists(st.sampled_from(sorted(arrays)), min_size=1, max_size=2)):
        kind, shape = data.draw(KINDS), data.draw(SHAPES)
        if data.draw(st.booleans()):
            arrays[name] = np.zeros(shape, kind)
        elif 'labels' in name:
            arrays[name] = np.full(len(ARRAYS[name]), data.draw(VALUES)).astype(data.draw(st.sampled_from('qQ')))
    path = folder / 'odd.npz'
    path.write_bytes(npz(False, **arrays))
    found, message = outcome(lambda: everything(path))
    assert message or found


def header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {'shape': shape, 'fortran_order': False, 'descr': '|u1'})
    return buffer.getvalue()


def members(**contents: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, content in contents.items():
            archive.writestr(f'{name}.npy', content)
    return buffer.getvalue()


def with_method(content: bytes, method: int) -> bytes:
    """Say in the directory of a zip that its first file is compressed by another method."""
    at = content.index(b'PK\x01\x02') + 10
    return content[:at] + bytes([method]) + content[at + 1:]


@pytest.mark.parametrize('content', [
    b'', b'PK', header((3, 3)), npz(False), members(train_images=b'', train_labels=b'x'),
    members(train_images=header((10 ** 15,))),
    members(train_images=header((10 ** 6, 10 ** 9)), train_labels=header((2,))),
    members(train_images=header((-1, 4, 4))), with_method(npz(False, **ARRAYS), 99),
    with_method(npz(True, **ARRAYS), 12),
    npz(False, train_images=ARRAYS['train_images'], train_labels=np.array([0, 1, 2, 0, 1, 10 ** 12])),
    npz(False, train_images=ARRAYS['train_images'], train_labels=np.uint64([0, 1, 0, 1, 0, 2 ** 63])),
    npz(False, train_images=np.zeros((2, 0, 5), np.uint8), train_labels=np.array([0, 1])),
], ids=range(13))
def test_what_is_no_set_of_images(content: bytes, folder: Path) -> None:
    (folder / 'no.npz').write_bytes(content)
    assert str(folder / 'no.npz') in outcome(lambda: open_source(f'npz:{folder / "no.npz"}'))[1]


@cases(80)
@given(data=st.data())
def test_a_damaged_image_ends_in_one_line(data: st.DataObject, folder: Path) -> None:
    ending = data.draw(st.sampled_from(['png', 'jpg', 'gif', 'bmp', 'webp', 'tiff', 'ppm']))
    whole, path = folder / f'whole.{ending}', folder / f'damaged.{ending}'
    if not whole.exists():
        Image.fromarray(fakes.pixels(9, 7, 3)).save(whole)
    path.write_bytes(data.draw(damaged(whole.read_bytes())))
    images = FileImages(folder, [path.name])
    problem_of(path)
    pixels, message = outcome(lambda: decode(images, (8, 8), 3))
    assert message or (pixels is not None and pixels.shape == (1, 3, 8, 8))
    outcome(lambda: check_cached(images))


def test_no_other_format_is_decoded(folder: Path) -> None:
    """Pillow hands PostScript to Ghostscript, which runs programs."""
    for kind in ('EPS', 'PDF', 'ICO', 'PCX'):
        Image.new('RGB', (8, 8)).save(folder / f'{kind}.png', kind)
        assert 'not an image that Pillow' in problem_of(folder / f'{kind}.png')


# -- folders -----------------------------------------------------------------------------------------------------------
def names(root: Path) -> set[str]:
    source = open_source(f'folder:{root}')
    splits = [split for split in (source.train, source.val, source.test) if split]
    listed = [os.path.relpath(split.name(i), root) for split in splits for i in range(len(split))]
    assert len(listed) == len(set(listed))
    return set(listed)


@cases(40)
@given(data=st.data())
def test_links_add_no_image_twice(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Links from anywhere in the folder to anywhere in it, or to what is around it."""
    root = tmp_path_factory.mktemp('links') / 'set'
    for split in ('train', 'test'):
        fakes.image_folder(root / split, {'a': 2, 'b/deep': 3}, 4)
    places = [root.parent, root, *(path for path in sorted(root.rglob('*')) if path.is_dir())]
    expected = names(root)
    for i in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from([place for place in places[1:] if place.name in ('a', 'b', 'deep')]))
        (at / f'link{i}').symlink_to(data.draw(st.sampled_from([*places, Path('/proc'), at / f'link{i}'])))
    assert names(root) == expected
    assert {os.path.relpath(path, root) for path in image_files([root])} == expected


def test_a_folder_outside_is_followed_once_and_what_is_skipped_is_named(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fakes.image_folder(tmp_path / 'set', {'a': 5, 'b': 5}, 4)
    fakes.image_folder(tmp_path / 'other', {'c': 5}, 4)
    (tmp_path / 'set' / 'c').symlink_to(tmp_path / 'other' / 'c')
    (tmp_path / 'set' / 'a' / 'again\x1b').symlink_to(tmp_path / 'other' / 'c')
    os.mkfifo(tmp_path / 'set' / 'b' / 'zz.png')
    with caplog.at_level(logging.WARNING):
        assert len(names(tmp_path / 'set')) == 15
    assert 'no regular files: b/zz.png' in caplog.text and r'again\x1b' in caplog.text
    assert 'belongs to the system' in outcome(lambda: open_source('folder:/proc'))[1]


# -- the same images ---------------------------------------------------------------------------------------------------
def replaced(path: Path) -> None:
    """Write other pixels, of equal size and time."""
    before = os.stat(path)
    content = bytearray(path.read_bytes())
    content[-20] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size and os.stat(path).st_mtime_ns == before.st_mtime_ns


def moved(path: Path) -> None:
    copy = path.with_name('copy')
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


@pytest.mark.parametrize('change, same', [(replaced, False), (moved, True)])
def test_other_images_of_equal_size_and_time_are_seen(
        change: Callable[[Path], None], same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TINYVIT_ZOO_CACHE', str(tmp_path / 'cache'))
    fakes.image_folder(tmp_path / 'set', {'a': 2, 'b': 2}, 6, ending='bmp')
    images = FileImages(tmp_path / 'set', ['a/000.bmp', 'a/001.bmp', 'b/000.bmp', 'b/001.bmp'])
    pixels, contents = decode_cached(images, (6, 6), 3), images.contents()
    change(tmp_path / 'set' / 'a' / '001.bmp')
    assert torch.equal(decode_cached(images, (6, 6), 3), pixels) is same
    assert (images.contents() == contents) is same
