"""Read TIFFs that Pillow does not know, or cuts to 8 bits, by tifffile."""
import logging
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MOST = 16       # channels; more are a volume
_GREY, _RGB, _ALPHA = 1, 2, ((1,), (2,))    # photometric, and extra samples, of the TIFF specification
_BITS, _SAMPLES, _EXTRA = 258, 277, 338     # tags
_UNSPECIFIED = 0    # an extra sample that is no alpha, but a channel: infrared, a second stain


def is_tiff(source: Path | BytesIO) -> bool:
    """Return whether a file begins as a TIFF or a BigTIFF."""
    if isinstance(source, BytesIO):
        start = source.getvalue()[:4]
    else:
        with open(source, 'rb') as file:
            start = file.read(4)
    return start in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


def is_cut(image: Image.Image) -> bool:
    """Return whether Pillow has opened a TIFF without all its bits or channels."""
    if image.format != 'TIFF':
        return False
    tags: Any = image.tag_v2    # type: ignore[attr-defined]
    samples = tags.get(_SAMPLES, 1)
    if image.mode.startswith('RGB'):
        return samples > 4 or max(tags.get(_BITS, (8,))) > 8 or _UNSPECIFIED in tags.get(_EXTRA, ())
    extra = image.mode == 'L' and _UNSPECIFIED in tags.get(_EXTRA, ())
    return samples > 1 and (extra or image.mode.startswith(('I', 'F')))


def by_tifffile(source: Path | BytesIO) -> BytesIO:
    """Return a TIFF as one that Pillow reads: 8-bit grey or RGB, or a page of 8 or 16 bits for each channel."""
    try:
        import tifffile
    except ImportError as e:
        raise ValueError("Pillow does not read this TIFF, or not all its bits and channels; tifffile may: pip install "
                         "'tinyvit-zoo[tiff]'") from e
    logging.getLogger('tifffile').setLevel(logging.CRITICAL)    # what is wrong is an exception too
    content = source.getvalue() if isinstance(source, BytesIO) else source.read_bytes()
    with tifffile.TiffFile(BytesIO(content), _multifile=False) as file:     # never another file that this one names
        if len(file.series) != 1:
            raise ValueError(f'it holds {len(file.series)} images, expected one')
        series, page = file.series[0], file.series[0].keyframe
        if page.photometric not in (_GREY, _RGB) or series.axes.replace('S', '')[-2:] != 'YX':
            raise ValueError(f'its pixels are {page.photometric!s}, {series.axes}: expected grey or RGB')
        if math.prod(series.shape) > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f'it has {math.prod(series.shape):,} pixels, too many for an image')
        array = series.asarray()
    array = np.moveaxis(array, -1, -3) if series.axes.endswith('S') else array
    channels = array.reshape(-1, *array.shape[-2:])
    return _written(channels[:3] if page.extrasamples in _ALPHA else channels, page.photometric == _RGB)


def _written(channels: np.ndarray, colour: bool) -> BytesIO:
    """Write [C, H, W]."""
    if len(channels) > MOST:
        raise ValueError(f'it has {len(channels)} channels, expected up to {MOST}')
    pixels = whole(channels)
    if colour and len(pixels) == 3 and pixels.dtype == np.uint8:
        pixels = pixels.transpose(1, 2, 0)[None]
    first, *others = (Image.fromarray(np.ascontiguousarray(page)) for page in pixels)
    file = BytesIO()
    first.save(file, 'TIFF', save_all=True, append_images=others)
    return file


def whole(pixels: np.ndarray) -> Any:
    """Return pixels as uint8 or uint16; floats of 0 to 1 are scaled to the second."""
    if pixels.dtype.kind == 'f':
        low, high = (float(edge(pixels)) if pixels.size else math.nan for edge in (np.min, np.max))
        if not 0 <= low <= high <= 1:
            raise ValueError(f'floating-point pixels go from {low:g} to {high:g}, expected 0 to 1')
        return (pixels.astype(np.float64) * 65535).round().astype(np.uint16)
    if pixels.dtype.kind == 'b':
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind != 'u' or pixels.dtype.itemsize > 2:
        raise ValueError(f'its pixels are {pixels.dtype}, expected 8 or 16 bits, or floats of 0 to 1')
    return pixels.astype(pixels.dtype.newbyteorder('='))
