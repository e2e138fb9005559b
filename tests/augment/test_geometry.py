"""Resized crops against Pillow's; affine maps are tested with the operations."""
import random

import pytest
import torch
from augment_cases import assert_levels, batch, from_pil, to_pil
from torchvision.transforms import functional as TF

from tinyvit_zoo.augment import geometry


@pytest.mark.parametrize('kernel', ['bilinear', 'bicubic', 'random'])
@pytest.mark.parametrize('size, out', [((32, 32), (32, 32)), ((31, 45), (32, 32)), ((64, 50), (16, 24)),
                                       ((32, 32), (16, 16)), ((20, 20), (48, 40)), ((13, 11), (7, 30))])
def test_resized_crop_is_pillows(size: tuple[int, int], out: tuple[int, int], kernel: str) -> None:
    rng = random.Random(0)
    images = batch(12, *size)
    boxes = []
    for _ in images:
        h, w = rng.randint(size[0] // 3, size[0]), rng.randint(size[1] // 3, size[1])
        boxes.append((rng.randint(0, size[0] - h), rng.randint(0, size[1] - w), h, w))
    flip, cubic = torch.arange(12) % 2 == 1, torch.arange(12) % 3 == 0
    cubic = cubic if kernel == 'random' else torch.full((12,), kernel == 'bicubic')
    got = geometry.resized_crop(images, torch.tensor(boxes, dtype=torch.float32).unbind(1), out,
                                cubic if kernel == 'random' else kernel, flip)
    for image, box, flipped, is_cubic, have in zip(images, boxes, flip, cubic, got, strict=True):
        mode = TF.InterpolationMode.BICUBIC if is_cubic else TF.InterpolationMode.BILINEAR
        want = TF.resized_crop(to_pil(image), *box, list(out), mode)
        # The newer Pillows start with the height where it shrinks and the width grows; what overshoots is cut between.
        swapped = box[2] > out[0] and box[3] < out[1]
        assert_levels(have, from_pil(TF.hflip(want) if flipped else want), 5 if swapped else 1, 0.3)
