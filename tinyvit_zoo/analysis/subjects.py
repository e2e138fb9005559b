"""The models and images that are analysed."""
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, is_model
from torch import Tensor, nn

from ..data.images import EXTENSIONS, FileImages, as_channels, one_line
from ..data.seeds import generator
from ..data.sources import open_source
from ..data.splits import Split
from ..errors import ZooError
from ..models import check_name, check_tag, list_models
from .layers import image_size

_DRAW = 6       # what the seed is used for


# -- models ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Subject:
    title: str
    model: Any

    @property
    def cfg(self) -> dict[str, Any]:
        return self.model.pretrained_cfg

    @property
    def channels(self) -> int:
        return getattr(self.model, 'in_chans', 3)

    def displayed(self, images: Tensor) -> Tensor:
        """Pixels as they were, [B, H, W, channels] in 0..1, of images as the model takes them."""
        mean, std = (torch.tensor(self.cfg[key], device=images.device).expand(images.shape[1])[:, None, None]
                     for key in ('mean', 'std'))
        return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).cpu()


def load_subject(spec: str, untrained: bool, device: torch.device) -> Subject:
    """`NAME[.TAG]`, `NAME=FILE`, or the directory of a training run; with random weights if `untrained`."""
    name, equals, file = spec.partition('=')
    args: dict[str, Any] = {}
    if not equals and Path(spec, 'recipe.json').is_file():
        name, file, args = _run(Path(spec))
    _check(name)
    if untrained:
        torch.manual_seed(0)
    model = _create(name, file, untrained, args)
    return Subject(f'{name} (untrained)' if untrained else spec, model.to(device).eval())


def _run(folder: Path) -> tuple[str, str, dict[str, Any]]:
    """Model, weights and constructor arguments of a run."""
    recipe = json.loads((folder / 'recipe.json').read_text(encoding='utf-8'))['recipe']
    weights = folder / 'weights.safetensors'
    if not weights.is_file():
        raise ZooError(f'{folder} is a run without {weights.name}: let it end, or go on with it by --resume.')
    return recipe['name'].partition('.')[0], str(weights), recipe.get('model_args') or {}


def _check(name: str) -> None:
    architecture, _, tag = name.partition('.')
    if architecture not in list_models() and is_model(architecture):
        if tag and name not in get_arch_pretrained_cfgs(architecture):
            raise ZooError(f'timm has no weights {tag!r} for {architecture}: take one of '
                           f'{", ".join(cfg.tag for cfg in get_arch_pretrained_cfgs(architecture).values())}.')
        return
    check_name(name)
    if tag:
        check_tag(architecture, tag)


def _create(name: str, file: str, untrained: bool, args: dict[str, Any]) -> nn.Module:
    if untrained:
        return timm.create_model(name.partition('.')[0], **args)
    architecture, tag = name.partition('.')[::2]
    if not file and not get_pretrained_cfg(name).has_weights:
        raise ZooError(f'There are no weights for {architecture}{tag and "."}{tag} yet: give {architecture}=FILE, or '
                       f'--untrained for random ones.')
    overlay = {'file': file} if file else None
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **args)
    except ZooError:
        raise
    except Exception as e:  # timm, the Hub and the network have their own
        raise ZooError(f'{name} could not be loaded ({type(e).__name__}: {one_line(e)}): give {architecture}=FILE, or '
                       f'--untrained.') from e


# -- images ------------------------------------------------------------------------------------------------------------
def open_images(data: str | None, split: str, files: Sequence[Path] | None) -> Split:
    """The images of a data source's split, or of files and folders."""
    if bool(data) == bool(files):
        raise ZooError('Give --data SOURCE (digits, npz:FILE, folder:DIR, ...) or --files IMAGE..., one of the two.')
    if data:
        found = getattr(open_source(data), split)
        if found is None:
            raise ZooError(f'{data} has no {split} images: take another --split.')
        return found
    paths = [str(path.absolute()) for given in files or () for path in _files_in(given)]
    return Split(FileImages(Path('/'), paths), torch.zeros(len(paths), dtype=torch.int64))


def _files_in(path: Path) -> list[Path]:
    if not path.exists():
        raise ZooError(f'There is no image or folder {path}.')
    found = [path] if path.is_file() else sorted(p for p in path.rglob('*') if p.suffix.lower() in EXTENSIONS)
    if not found:
        raise ZooError(f'There are no images in {path}: expected files with the endings {" ".join(EXTENSIONS)}.')
    return found


def draw_images(split: Split, count: int, seed: int) -> Split:
    """So many at random, of all classes mixed; all, where there are no more."""
    return split.select(torch.randperm(len(split), generator=generator(seed, _DRAW))[:count])


def batches(subject: Subject, split: Split, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """The images in their order, prepared as the weights want them [B, C, H, W]."""
    cfg, height_width = subject.cfg, image_size(subject.model)
    transform: Any = create_transform(
        (subject.channels, *height_width), interpolation=cfg['interpolation'], mean=cfg['mean'], std=cfg['std'],
        crop_pct=cfg['crop_pct'])
    for start in range(0, len(split), batch_size):
        yield torch.stack([
            transform(_read(split, i, subject.channels)) for i in range(start, min(start + batch_size, len(split)))
        ]).to(device)


def _read(split: Split, i: int, channels: int) -> Any:
    try:
        return as_channels(split.read(i), channels)
    except Exception as e:  # every decoder has its own errors for a damaged file
        raise ZooError(f'{split.name(i)} cannot be read as an image ({one_line(e)}): mend or leave it out.') from e
