"""Decoded images are kept, seen to be stale or damaged, and made again."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from data_cases import folder_split
from PIL import Image
from torch import Tensor

from tinyvit_zoo.data import batches as loaders, cache, images as decoding
from tinyvit_zoo.data.images import decode
from tinyvit_zoo.errors import ZooError


def pixels_in_memory(root: Path, size: int = 4) -> Tensor:
    return loaders.in_memory(folder_split(root), (size, size), 3)


def test_files_are_decoded_once(tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pixels_in_memory(tmp_path / 'set')
    assert len(list(cache_folder.iterdir())) == 1
    assert pixels_in_memory(tmp_path / 'set', 5).shape[-1] == 5  # another size is another entry
    monkeypatch.setattr(decoding, 'decode', lambda *_, **__: pytest.fail('decoded again'))
    assert torch.equal(pixels_in_memory(tmp_path / 'set'), first)
    assert not [path for path in cache_folder.iterdir() if path.name.startswith('.')]


@pytest.mark.parametrize('change', [
    lambda root: Image.fromarray(fakes.pixels(8, 8, 3)).save(root / 'a' / '000.png'),
    lambda root: os.utime(root / 'a' / '000.png', ns=(1, 1)),
    lambda root: (root / 'a' / '000.png').rename(root / 'a' / '0000.png'),
    lambda root: (root / 'a' / '000.png').unlink(),
], ids=['content', 'time', 'name', 'removed'])
def test_a_changed_file_is_seen(change: Any, tmp_path: Path, cache_folder: Path) -> None:
    pixels_in_memory(tmp_path / 'set')
    change(tmp_path / 'set')
    again = pixels_in_memory(tmp_path / 'set')
    assert len(list(cache_folder.iterdir())) == 2
    split = folder_split(tmp_path / 'set')
    assert torch.equal(again, decode(split.images, (4, 4), 3, split.index))


@pytest.mark.parametrize('harm', [
    lambda data: data[:len(data) // 2],
    lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:],
    lambda data: b'',
    lambda data: b'x' * 100,
], ids=['short', 'one bit', 'empty', 'another file'])
def test_a_damaged_cache_is_made_again(
        harm: Any, tmp_path: Path, cache_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = pixels_in_memory(tmp_path / 'set')
    entry = next(cache_folder.iterdir())
    whole = entry.read_bytes()
    entry.write_bytes(harm(whole))
    assert torch.equal(pixels_in_memory(tmp_path / 'set'), first)
    assert 'are damaged' in caplog.text and entry.stat().st_size == len(whole)
    pixels_in_memory(tmp_path / 'other')
    changed = next(path for path in cache_folder.iterdir() if path != entry)
    entry.write_bytes(changed.read_bytes())     # whole, but of other images
    assert torch.equal(pixels_in_memory(tmp_path / 'set'), first) and entry.read_bytes() == whole
    entry.unlink()
    os.mkfifo(entry)        # which reading would wait for
    assert torch.equal(pixels_in_memory(tmp_path / 'set'), first) and entry.read_bytes() == whole


@pytest.mark.parametrize('harm', [
    lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], lambda data: data[:-1], lambda data: data[32:],
], ids=['one bit', 'short', 'of an earlier version'])
def test_damaged_digests_of_files_are_made_again(harm: Any, tmp_path: Path, cache_folder: Path) -> None:
    """Or images would seem to be others."""
    images = folder_split(tmp_path / 'set').images
    digests = images.digests()
    entry = next(cache_folder.glob('*.digests'))
    whole = entry.read_bytes()
    entry.write_bytes(harm(whole))
    assert np.array_equal(images.digests(), digests) and entry.read_bytes() == whole


def test_a_cache_of_another_shape_is_made_again(tmp_path: Path, cache_folder: Path) -> None:
    first = pixels_in_memory(tmp_path / 'set')
    np.savez(next(cache_folder.iterdir()), images=np.zeros((3, 3), np.uint8))
    assert torch.equal(pixels_in_memory(tmp_path / 'set'), first)


def test_a_cache_that_cannot_be_written_is_done_without(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / 'file').write_text('in the way')
    monkeypatch.setenv('TINYVIT_ZOO_CACHE', str(tmp_path / 'file'))
    assert len(pixels_in_memory(tmp_path / 'set')) == 16
    assert 'TINYVIT_ZOO_CACHE' in caplog.text


def test_the_check_before_streaming_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = folder_split(tmp_path / 'set')
    decoding.check_cached(split.images)
    monkeypatch.setattr(decoding, 'for_each', lambda *_: pytest.fail('checked again'))
    decoding.check_cached(split.images)
    os.utime(tmp_path / 'set' / 'a' / '000.png', ns=(1, 1))
    with pytest.raises(pytest.fail.Exception):
        decoding.check_cached(split.images)


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('TINYVIT_ZOO_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', '/x')
    assert cache.cache_folder() == Path('/x/tinyvit_zoo/images')
    monkeypatch.delenv('XDG_CACHE_HOME')
    assert cache.cache_folder() == Path.home() / '.cache/tinyvit_zoo/images'
    monkeypatch.setenv('TINYVIT_ZOO_CACHE', '~nobody_of_this_name/x')
    with pytest.raises(ZooError, match=r'no home directory for the cache .~nobody_of_this_name/x.'):
        cache.cache_folder()


def test_a_user_without_home_gives_a_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.delenv('HOME')
    monkeypatch.setattr('pwd.getpwuid', lambda _: {}['no entry'])
    monkeypatch.setenv('TINYVIT_ZOO_CACHE', '/x')
    assert cache.cache_folder() == Path('/x/images')
    monkeypatch.delenv('TINYVIT_ZOO_CACHE')
    with pytest.raises(ZooError, match=r'no home directory .*: set TINYVIT_ZOO_CACHE'):
        cache.cache_folder()
