"""Draw where shipped weights look on photographs and a digit. `update_docs.py` writes the picture."""
from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tinyvit_zoo import Classifier, load
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.interpret.attention import attention_maps
from tinyvit_zoo.runtime.files import new_figure
from tinyvit_zoo.weights import catalogue

PHOTOS = Path(__file__).resolve().parent.parent / 'examples' / 'photos'
SHOWN = (('cct_4_3x2.c10', 'cat.jpg'), ('cct_2_3x2.c100', 'rocket.jpg'), ('cct_2_3x2.c100', 'coffee.jpg'),
         ('cct_2_3x2.digits', 'a digit'))


def sources() -> list[list[str]]:
    """Return the weights and images of the picture, with their digests."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in PHOTOS.iterdir()}
    return [[weights, catalogue()[weights].sha256, name, digests.get(name, '')] for weights, name in SHOWN]


def image_of(name: str) -> Image.Image:
    if name == 'a digit':
        test = open_source('digits').test
        return Image.fromarray(test.images.pixels_at(test.number(4)).squeeze().numpy()).convert('RGB')
    return Image.open(PHOTOS / name)


def rollout(classifier: Classifier, image: Image.Image) -> tuple[Tensor, Tensor]:
    """Return the pixels [H, W, 3] that the model sees, and attention rolled out [H, W], its maximum 1."""
    side = classifier.model.pretrained_cfg['input_size'][-1]
    pixels = torch.tensor(list(image.resize((side, side), Image.BICUBIC).tobytes())).view(side, side, 3) / 255
    cfg = classifier.model.pretrained_cfg
    x = ((pixels - torch.tensor(cfg['mean'])) / torch.tensor(cfg['std'])).permute(2, 0, 1)[None].float()
    shares = attention_maps(classifier.model.eval(), x).rollout
    heat = F.interpolate(shares[None], (side, side), mode='bilinear')[0, 0]
    return pixels, (heat - heat.min()) / (heat.max() - heat.min())


def draw(sources: list[list[str]]) -> Any:
    figure, axes = new_figure(1, 2 * len(sources), (1.5 * 2 * len(sources), 2.0))
    for (weights, _, name, _), left, right in zip(sources, axes[0, ::2], axes[0, 1::2], strict=True):
        classifier, image = load(weights, device='cpu'), image_of(name)
        pixels, heat = rollout(classifier, image)
        first, = classifier.predict(image)
        left.imshow(pixels.numpy(), interpolation='nearest')
        right.imshow(pixels.mean(2).numpy() * 0.7, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
        right.imshow(heat.numpy(), cmap='inferno', alpha=0.15 + 0.6 * heat.numpy(), interpolation='bilinear')
        left.set_title(f'{first.label}, {first.probability:.0%}', fontsize=11)
        right.set_title(weights, fontsize=8)
        for axis in (left, right):
            axis.set(xticks=[], yticks=[])
    return figure
