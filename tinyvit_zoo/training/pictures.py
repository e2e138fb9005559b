"""What a masked autoencoder sees, makes of it, and should have made of it, as a picture."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..methods import MaskedModel
from .run_dir import Run

FOLDER = 'reconstructions'


def draw_reconstruction(
        model: MaskedModel, images: Tensor, cfg: Mapping[str, Any], folder: Path, step: int, run: Run) -> None:
    """`reconstructions/STEP.png`: always the same images, masked in the same way."""
    pyplot = run.pyplot()
    if pyplot is None:
        return
    noise, = model.draw(len(images), torch.Generator(images.device).manual_seed(0))
    training = model.training
    masked, made = model.eval().picture(images, noise)
    model.train(training)
    rows = {'seen': masked, 'predicted': made, 'original': images}
    figure, grid = pyplot.subplots(
        len(rows), len(images), figsize=(1.1 * len(images) + 1, 3.6), layout='constrained', squeeze=False)
    for (name, batch), line in zip(rows.items(), grid, strict=True):
        line[0].set_ylabel(name)
        for pixels, axes in zip(_shown(batch, cfg), line, strict=True):
            axes.imshow(pixels)
            axes.set(xticks=[], yticks=[])
    figure.suptitle(f'step {step}')
    (folder / FOLDER).mkdir(exist_ok=True)
    partial = folder / FOLDER / '.partial.png'
    figure.savefig(partial, dpi=110)
    pyplot.close(figure)
    partial.replace(folder / FOLDER / f'{step:08d}.png')


def _shown(images: Tensor, cfg: Mapping[str, Any]) -> Any:
    """Normalised [B, C, H, W] to values from 0 to 1, [B, H, W, C]."""
    mean, std = (images.new_tensor(cfg[key])[:, None, None] for key in ('mean', 'std'))
    return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
