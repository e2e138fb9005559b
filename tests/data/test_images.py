"""Files and arrays to pixels."""
from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from data_cases import numbered
from PIL import Image
from timm.data import create_transform

from tinyvit_zoo.data.channels import as_channels, pixels_of
from tinyvit_zoo.data.images import ArrayImages, FileImages, check_cached, decode
from tinyvit_zoo.errors import ZooError


def png(image: Image.Image, **options: Any) -> FileImages:
    class One(FileImages):
        def open(self, i: int) -> Any:
            buffer = io.BytesIO()
            image.save(buffer, options.pop('format', 'PNG'), **options)
            return buffer

    return One(Path(), ['one'])


def test_grey_and_colour() -> None:
    """The fast way for arrays gives what Pillow gives, to the bit."""
    colour = ArrayImages(torch.from_numpy(fakes.pixels(50, 8, 8, 3)), 'x')
    by_pillow = np.stack([np.asarray(colour.read(i).convert('L')) for i in range(50)])
    assert (decode(colour, (8, 8), 1)[:, 0].numpy() == by_pillow).all()
    grey = ArrayImages(torch.from_numpy(fakes.pixels(50, 8, 8)), 'x')
    assert (decode(grey, (8, 8), 3) == grey.pixels[:, None]).all()


def test_the_rule_of_size() -> None:
    """Identity where it fits; else filled and cut in the middle."""
    image = Image.fromarray(fakes.pixels(10, 20, 3))
    assert np.array_equal(pixels_of(image, (10, 20)).transpose(1, 2, 0), np.asarray(image))
    assert np.array_equal(pixels_of(image, (10, 10)).transpose(1, 2, 0), np.asarray(image)[:, 5:15])
    for size in (30, 4):
        filled = image.resize((2 * size, size), Image.Resampling.BICUBIC)
        middle = np.asarray(filled)[:, size // 2:size // 2 + size]
        assert np.array_equal(pixels_of(image, (size, size)).transpose(1, 2, 0), middle)
    assert pixels_of(image, (7, 9)).shape[1:] == (7, 9)


@pytest.mark.parametrize('shape', [(48, 64), (64, 48), (33, 100), (100, 33), (20, 7), (9, 1)], ids=str)
def test_the_pixels_are_those_of_timms_transform(shape: tuple[int, int]) -> None:
    """Or figures and predictions would differ."""
    image = Image.fromarray(fakes.pixels(*shape, 3))
    for size in (24, 64):
        transform = create_transform((3, size, size), crop_pct=1., interpolation='bicubic', mean=(0,) * 3, std=(1,) * 3)
        assert np.array_equal(pixels_of(image, (size, size)), (transform(image) * 255).round().byte())


def test_sixteen_bits_are_scaled() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    assert np.asarray(png(Image.fromarray(values)).read(0)).tolist() == [[0, 0, 1, 128, 255]]


def test_palettes_alpha_and_other_modes() -> None:
    colour = Image.fromarray(fakes.pixels(4, 4, 3))
    palette = colour.quantize(16)
    assert np.array_equal(png(palette).read(0), palette.convert('RGB'))
    assert np.array_equal(png(palette, transparency=3).read(0), palette.convert('RGB'))
    clear = colour.copy()
    clear.putalpha(7)
    assert np.array_equal(png(clear).read(0), colour)
    grey = colour.convert('L')
    assert np.array_equal(png(grey.convert('LA')).read(0), grey)
    bits = grey.convert('1')
    assert np.array_equal(png(bits).read(0), bits.convert('L'))
    assert png(colour.convert('CMYK'), format='TIFF').read(0).mode == 'RGB'
    assert np.array_equal(png(Image.fromarray(np.full((1, 1), 0.5, np.float32)), format='TIFF').read(0), [[128]])
    with pytest.raises(ValueError, match='floating-point pixels go from 1 to 300, expected 0 to 1'):
        png(Image.fromarray(np.array([[1, 300]], np.float32)), format='TIFF').read(0)
    for odd in (-1, 65536):
        with pytest.raises(ValueError, match=f'its pixels go from {odd} to {odd}, expected 0 to 65535'):
            png(Image.fromarray(np.full((1, 1), odd, np.int32)), format='TIFF').read(0)
    with pytest.raises(ValueError, match='it has 2 pages, expected one'):
        png(colour, format='TIFF', save_all=True, append_images=[colour]).read(0)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = Image.fromarray(fakes.pixels(4, 6, 3))
    upright = png(image, exif=exif).read(0)
    assert upright.size == (4, 6)
    assert np.array_equal(upright, image.transpose(Image.Transpose.ROTATE_270))


def test_as_channels_copies_nothing_that_fits() -> None:
    image = Image.fromarray(fakes.pixels(4, 4, 3))
    assert as_channels(image, 3) is image and as_channels(image, 1).mode == 'L'


def test_where_no_thread_may_be_started_the_work_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    images = numbered(200).images
    wanted = decode(images, (8, 8), 3)
    start, left = threading.Thread.start, iter([True])

    def refuse(thread: threading.Thread) -> None:
        if not next(left, False):
            raise RuntimeError("can't start new thread")
        start(thread)
    monkeypatch.setattr('tinyvit_zoo.data.images.cpu_count', lambda: 4)
    monkeypatch.setattr(threading.Thread, 'start', refuse)
    for _ in range(2):  # after one thread, and without any
        assert torch.equal(decode(images, (8, 8), 3), wanted)


def test_ten_unreadable_images_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    root = fakes.image_folder(tmp_path / 'set', {'a': 300})
    for i in range(0, 300, 20):
        (root / 'a' / f'{i:03}.png').write_bytes(b'')
    with pytest.raises(ZooError, match=r'15 of 300 .*, and 5 more') as caught:
        check_cached(FileImages(root, sorted(str(p.relative_to(root)) for p in root.rglob('*.png'))))
    assert str(caught.value).count('.png') == 10
