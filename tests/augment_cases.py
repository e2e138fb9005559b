"""Pictures for the tests of augmentation."""
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from tinyvit_zoo.augment.batched import Augment
from tinyvit_zoo.augment.spec import AugmentSpec

MEAN, STD = (0.49, 0.48, 0.44), (0.25, 0.24, 0.26)


def augmentation(*args: Any, **kwargs: Any) -> Augment:
    return Augment(AugmentSpec(*args, **kwargs))


def picture(h: int, w: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Waves, noise and a flat patch: slopes and edges, no channel that fills 0..255."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:h, :w]
    waves = [127 + 90 * np.sin(x / (3 + c + seed) + c) * np.cos(y / (4 + c)) for c in range(channels)]
    image = np.stack(waves, -1) + rng.randn(h, w, channels) * 12
    image[h // 4:h // 2, w // 4:w // 2] = rng.randint(0, 255, channels)
    return image.clip(5, 243).astype(np.uint8)


def batch(n: int, h: int = 32, w: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.stack([torch.from_numpy(picture(h, w, s, channels)).permute(2, 0, 1) for s in range(n)])


def to_pil(image: torch.Tensor) -> Image.Image:
    return TF.to_pil_image(image)


def from_pil(image: Image.Image) -> torch.Tensor:
    return TF.pil_to_tensor(image)


def assert_levels(got: torch.Tensor, want: torch.Tensor, levels: int, share: float = 1.) -> None:
    """At most `levels` off anywhere, and off at all in at most `share` of the values."""
    off = (got.int() - want.int()).abs()
    assert off.max() <= levels and (off > 0).float().mean() <= share, (off.max(), (off > 0).float().mean())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
