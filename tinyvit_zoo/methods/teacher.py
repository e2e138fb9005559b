"""Distillation: the teacher sees the student's own augmented and mixed images."""
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ZooError
from ..runtime.world import autocast
from ..weights.resolve import resolve


class Teacher:
    """Logits of a trained classifier for images that are normalized for another (`cfg`) and may have another size."""

    def __init__(self, spec: str, cfg: Mapping[str, Any], device: torch.device, dtype: torch.dtype | None) -> None:
        resolved = resolve(spec)
        if not resolved.has_weights:
            raise ZooError(f'The teacher {spec} has no weights: give NAME.TAG, NAME=FILE or a run directory.')
        loaded = resolved.load(device)
        if loaded.readout.multi_label:
            raise ZooError(f'The teacher {spec} gives several labels per image: give one that gives one label each.')
        self.model, self.device, self.dtype = loaded.model.requires_grad_(False), device, dtype
        classes, names = self.model.num_classes, list(loaded.label_names)
        if classes != cfg['num_classes']:
            raise ZooError(f'The teacher {spec} has {classes} classes, but the images have {cfg["num_classes"]}: train '
                           f'a teacher on these images first, and give its run directory.')
        if names and list(cfg['label_names']) != names:
            raise ZooError(f'The teacher {spec} has other classes ({", ".join(names[:3])}, ...) than the images '
                           f'({", ".join(cfg["label_names"][:3])}, ...): train a teacher on these images first.')
        self.size = tuple(loaded.cfg['input_size'][1:])
        mean, std, own_mean, own_std = (torch.tensor(values, device=device)[:, None, None] for values in (
            cfg['mean'], cfg['std'], loaded.cfg['mean'], loaded.cfg['std']))
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        x = resized(x * self.scale + self.shift, self.size)
        with autocast(self.device, self.dtype):
            return self.model(x).float()


def resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode='bilinear', antialias=True, align_corners=False)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened outputs, times the squared temperature, so that gradients keep size."""
    student, target = ((x / temperature).log_softmax(1) for x in (logits, teacher))
    return F.kl_div(student, target, reduction='batchmean', log_target=True) * temperature ** 2
