"""The pixels of an image: 8-bit grey or RGB, 16 bits, or another number of channels than one and three.

What Pillow's RGB and grey do not hold is int32 from 0 to 65535 (16 bits), or uint8, [C, H, W]. Models take
value / 65535, or value / 255.
"""
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, ImageSequence
from torch import Tensor
from torchvision.transforms.functional import center_crop

from .files import open_image
from .tiff import MOST, whole


def largest(dtype: torch.dtype) -> int:
    """Return the value that counts as 1."""
    return 65535 if dtype == torch.int32 else 255


def is_deep(channels: int, dtype: torch.dtype) -> bool:
    return channels not in (1, 3) or dtype == torch.int32


def input_channels(channels: int) -> int:
    """Return the channels that a model takes for such images: grey is repeated to three."""
    return 3 if channels == 1 else channels


def is_deep_image(image: Image.Image) -> bool:
    """Return whether an open image is of 16 bits, or a TIFF of several pages, its channels."""
    return page_count(image) > 1 or image.mode.startswith(('I', 'F'))


def page_count(image: Image.Image) -> int:
    """Return the pages of a TIFF; 1 for animations, of which the first frame counts."""
    return getattr(image, 'n_frames', 1) if image.format == 'TIFF' else 1


def page_pixels(page: Image.Image) -> np.ndarray:
    """Return the pixels of an image as uint8, or uint16 where it has more bits; those of floats are from 0 to 1."""
    pixels = np.asarray(page)
    if not page.mode.startswith('I'):
        return whole(pixels)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f'its pixels go from {pixels.min()} to {pixels.max()}, expected 0 to 65535')
    return pixels.astype(np.uint16)


def read_pages(image: Image.Image) -> Tensor:
    """Return the pixels of a grey image, or of all pages of a TIFF."""
    if (count := page_count(image)) > MOST:
        raise ValueError(f'it has {count} pages, expected up to {MOST}')
    pages = [page_pixels(page) for page in ImageSequence.Iterator(image)]
    if any(page.ndim != 2 or page.dtype not in (np.uint8, np.uint16) for page in pages):
        raise ValueError(f'its pages are {pages[0].dtype} {list(pages[0].shape)}, expected one channel of 8 or 16 bits')
    if len({(page.shape, page.dtype) for page in pages}) > 1:
        raise ValueError(f'its {len(pages)} pages differ in size or depth')
    return as_tensor(np.stack(pages))


def read_deep(source: Path | BytesIO) -> Tensor | None:
    """Return the pixels of a file; None for one of 8 bits that is grey or RGB."""
    with open_image(source) as image:
        return read_pages(image) if is_deep_image(image) else None


def as_tensor(array: np.ndarray) -> Tensor:
    """Return uint8 as it is, and uint16 as int32, which torch can work with."""
    return torch.from_numpy(array.astype(np.int32) if array.dtype == np.uint16 else np.array(array))


def fitted(pixels: Tensor, size: tuple[int, int], channels: int) -> Tensor:
    """Resize pixels until they fill the size and crop the middle, as torchvision does; repeat a single channel."""
    if len(pixels) not in (1, channels):
        raise ValueError(f'it has {len(pixels)} channels, expected {channels}')
    if tuple(pixels.shape[1:]) != tuple(size):
        grown = _filling(tuple(pixels.shape[1:]), size)
        x = F.interpolate(pixels[None].float(), size=grown, mode='bicubic', antialias=True)[0]
        x = center_crop(x, list(size))
        pixels = x.round().clamp(0, largest(pixels.dtype)).to(pixels.dtype)
    return pixels.expand(channels, -1, -1)


def cropped(pixels: Tensor, size: tuple[int, int], channels: int, crop_pct: float) -> Tensor:
    """Fit pixels to a larger size, of which `size` is a share, and crop the middle, as timm does."""
    grown = int(size[0] / crop_pct), int(size[1] / crop_pct)
    return center_crop(fitted(pixels, grown, channels), list(size))


def _filling(have: Sequence[int], size: Sequence[int]) -> list[int]:
    """Return the smallest height and width of the same shape that fill the size, rounded as torchvision does."""
    scale = max(want / old for want, old in zip(size, have, strict=True))
    return [max(want, int(old * scale + 1e-6)) for want, old in zip(size, have, strict=True)]


def preview(pixels: Tensor) -> Image.Image:
    """Return the mean of the channels as a grey picture, from its darkest to its brightest."""
    grey = pixels.float().mean(0)
    grey = (grey - grey.min()) / (grey.max() - grey.min()).clamp(min=1)
    return Image.fromarray((255 * grey).byte().numpy())


def as_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert to RGB (3) or grey (1)."""
    mode = 'RGB' if channels == 3 else 'L'
    return image if image.mode == mode else image.convert(mode)


def pixels_of(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Bring an image to `size` (height, width) as timm's transform does: fill it, cut the middle -> uint8 [C, H, W]."""
    if image.size != size[::-1]:
        height, width = _filling(image.size[::-1], size)
        image = center_crop(image.resize((width, height), Image.Resampling.BICUBIC), list(size))
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def upright(image: Image.Image) -> Image.Image:
    """Turn an image upright; make it 8-bit RGB or grey: palettes looked up, alpha dropped, 16 bits scaled, not cut."""
    if (pages := page_count(image)) > 1:
        if image.mode.startswith(('I', 'F')):
            read_pages(image)   # says what is wrong with its values, if anything is
        raise ValueError(f'it has {pages} pages, expected one, or up to {MOST} grey ones of one size in each image')
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ('L', 'RGB'):
        image.load()  # `Image.open` reads no pixels, and the file is about to be closed
        return image
    if image.mode.startswith(('I', 'F')):
        return Image.fromarray((page_pixels(image) // 256).astype(np.uint8))
    if image.mode in ('1', 'LA', 'La'):
        return image.convert('L')
    if image.mode in ('P', 'PA'):
        image = image.convert('RGBA')  # or palettes with transparency draw a warning
    return image.convert('RGB')
