"""Corruptions and JPEG: their strength, what they leave alone, and Pillow as the yardstick."""
import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tinyvit_zoo.errors import ZooError
from tinyvit_zoo.measure.corruptions import CORRUPTIONS, SEVERITIES, corrupt, jpeg


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 6, channels: int = 3, height: int = 40, width: int = 48) -> Tensor:
    """Smooth shapes with edges and some texture, uint8."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing='ij')
    freq = 2 + 3 * torch.rand(count, channels, 1, 1, generator=seeded())
    phase = 6 * torch.rand(count, channels, 1, 1, generator=seeded(1))
    waves = 0.5 + 0.3 * (freq * (x + 2 * y) + phase).sin() + 0.15 * ((x - 0.5).square() + (y - 0.5).square() < 0.1)
    noise = 0.05 * torch.randn(count, channels, height, width, generator=seeded(2))
    return ((waves + noise).clamp(0, 1) * 255).to(torch.uint8)


def distance(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().mean().item()


@pytest.mark.parametrize('name', CORRUPTIONS)
@pytest.mark.parametrize('shape', [(3, 40, 48), (1, 33, 17)])
def test_severities_rise_and_the_seed_decides(name: str, shape: tuple[int, int, int]) -> None:
    images = pictures(6, *shape)
    done = [corrupt(images, name, severity, seeded(3)) for severity in range(1, SEVERITIES + 1)]
    assert all(image.shape == images.shape and image.dtype == torch.uint8 for image in done)
    assert torch.equal(done[2], corrupt(images, name, 3, seeded(3)))
    changes = [distance(image, images) for image in done]
    assert changes[0] > 0.2 and changes[4] > 1.3 * changes[0]
    if name != 'pixelate':  # its blocks may fall on the picture's own edges: only the trend is sure
        assert all(later > 0.93 * change for change, later in itertools.pairwise(changes))


@pytest.mark.parametrize('name', ['gaussian_noise', 'shot_noise', 'impulse_noise', 'motion_blur', 'glass_blur', 'snow',
                                  'frost', 'fog', 'elastic_transform'])
def test_each_image_has_random_numbers_of_its_own(name: str) -> None:
    same = pictures(1).expand(2, -1, -1, -1)
    first, second = corrupt(same, name, 4, seeded())
    assert distance(first, second) > 0.2


def test_the_noises_have_the_moments_they_name() -> None:
    grey = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    noise = corrupt(grey, 'gaussian_noise', 1, seeded()).float() / 255 - 128 / 255
    assert noise.std().item() == pytest.approx(0.04, rel=0.02) and abs(noise.mean().item()) < 1e-3
    shot = corrupt(grey, 'shot_noise', 1, seeded()).float() / 255
    assert shot.std().item() == pytest.approx((128 / 255 / 250) ** 0.5, rel=0.02)
    impulses = corrupt(grey, 'impulse_noise', 5, seeded())
    assert (impulses == 0).float().mean().item() == pytest.approx(0.08, abs=4e-3)
    assert (impulses == 255).float().mean().item() == pytest.approx(0.08, abs=4e-3)


@pytest.mark.parametrize('name', ['defocus_blur', 'motion_blur', 'zoom_blur', 'glass_blur', 'elastic_transform',
                                  'pixelate', 'contrast', 'jpeg_compression'])
def test_an_even_image_has_nothing_to_lose(name: str) -> None:
    even = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    assert (corrupt(even, name, 5, seeded()).int() - 77).abs().max() <= 1


@pytest.mark.parametrize('name', ['defocus_blur', 'motion_blur', 'zoom_blur', 'pixelate', 'elastic_transform'])
def test_a_larger_copy_loses_the_same(name: str) -> None:
    """Lengths grow with the image: what is done to a copy three times as large looks the same at the first size."""
    small = pictures(4, 3, 32, 32)
    large = torch.nn.functional.interpolate(small.float(), (96, 96), mode='bilinear').to(torch.uint8)
    there = torch.nn.functional.interpolate(corrupt(large, name, 5, seeded()).float(), (32, 32), mode='area')
    back = torch.nn.functional.interpolate(large.float(), (32, 32), mode='area')
    assert distance(there, back) == pytest.approx(distance(corrupt(small, name, 5, seeded()), small), rel=0.4)


def test_a_point_becomes_its_kernel() -> None:
    """Defocus: a disc of the right area, symmetric; motion: a line through the point. Neither loses light."""
    point = torch.zeros(3, 1, 65, 65, dtype=torch.uint8)
    point[:, :, 32, 32] = 255
    for name in ('defocus_blur', 'motion_blur'):
        done = corrupt(point, name, 3, seeded()).float()
        assert done.sum((1, 2, 3)).sub(255).abs().max() < 40                        # each of the pixels is rounded
        assert (done - done.flip(2, 3)).abs().max() <= 1
    disc = corrupt(point, 'defocus_blur', 3, seeded())[0, 0]
    radius = 1.2 * 65 / 32
    assert (disc > disc.max() / 2).sum().item() == pytest.approx(np.pi * (radius + 0.25) ** 2, rel=0.2)
    assert (disc - disc.T.contiguous()).abs().max() <= 1


def test_brightness_keeps_the_hue_and_contrast_the_mean() -> None:
    colour = torch.tensor([40, 80, 20], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 8, 8)
    bright = corrupt(colour, 'brightness', 1, seeded()).float()[0, :, 0, 0]
    assert bright[1].item() == pytest.approx(80 + 0.08 * 255, abs=1)
    torch.testing.assert_close(bright / bright[1], torch.tensor([0.5, 1., 0.25]), atol=0.02, rtol=0)
    images = pictures()
    flat = corrupt(images, 'contrast', 5, seeded()).float()
    torch.testing.assert_close(flat.mean((2, 3)), images.float().mean((2, 3)), atol=0.6, rtol=0)
    torch.testing.assert_close(flat.std((2, 3)), 0.12 * images.float().std((2, 3)), atol=0.6, rtol=0)


def saved_by_pillow(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    array = image.permute(1, 2, 0).squeeze(2).numpy()
    Image.fromarray(array).save(file, 'JPEG', quality=quality)
    return torch.from_numpy(np.asarray(Image.open(file)).reshape(*array.shape[:2], -1).copy()).permute(2, 0, 1)


@pytest.mark.parametrize('quality', [5, 25, 50, 80, 95])
@pytest.mark.parametrize('shape', [(3, 32, 32), (3, 40, 50), (3, 31, 47), (1, 33, 18)])
def test_jpeg_is_pillows(shape: tuple[int, int, int], quality: int) -> None:
    """Within 1 grey level in the mean, borders too; libjpeg's loss itself is several times that."""
    images = pictures(20, *shape)
    expected = torch.stack([saved_by_pillow(image, quality) for image in images])
    off = (jpeg(images, quality).float() - expected.float()).abs()
    loss = distance(images, expected)
    assert off.mean() < min(0.75, 0.25 * loss)
    for border in (off[:, :, :2], off[:, :, -2:], off[..., :2], off[..., -2:]):
        assert border.mean() < min(1., 0.4 * loss)


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ZooError, match='Did you mean gaussian_noise'):
        corrupt(pictures(1), 'gaussian', 1, seeded())
    with pytest.raises(ZooError, match='expected 1 to 5'):
        corrupt(pictures(1), 'fog', 6, seeded())
    with pytest.raises(ZooError, match='1 or 3 channels, not 4'):
        corrupt(pictures(1, 4), 'jpeg_compression', 1, seeded())
