"""Classify image files of any kind that Pillow reads."""
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset
from torch import Tensor, nn

from ..augment.batched import normalize
from ..data.channels import as_channels, cropped, upright
from ..data.files import EXTENSIONS, Finder, open_image
from ..data.objects import as_image, deep_pixels
from ..errors import ZooError
from ..runtime.files import user_path
from ..runtime.text import Progress, one_line
from ..weights.readout import PLAIN, Readout
from ..weights.resolve import Resolved, preprocessing
from .bench import check_size
from .calibration import check_finite, check_logits


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, best first.

    For multi-label weights: all above a probability of 0.5, possibly none.
    """
    labels: tuple[str, ...]
    indices: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str:
        return self.labels[0] if self.labels else ''

    @property
    def probability(self) -> float:
        return self.probabilities[0] if self.labels else 0.


def label_names(cfg: Any) -> list[str]:
    """Return a name for each class, from the cfg or timm's ImageNet lists; none where neither has them."""
    names = cfg.get('label_names')
    if not names and (subset := infer_imagenet_subset(dict(cfg))):
        names = ImageNetInfo(subset).label_descriptions()
    return list(names or ())


def load_classifier(resolved: Resolved, device: str, batch: int = 1) -> tuple[nn.Module, list[str], Readout]:
    """Load weights for batches of so many images.

    Returns the model, a name or number for each class, and how its logits become probabilities.
    """
    if resolved.untrained or not resolved.has_weights:
        raise ZooError(f'There are no weights for {resolved.architecture}: give --weights FILE.')
    if resolved.cfg.get('num_classes') == 0:
        raise ZooError(f'{resolved.spec} has no classes to predict: it is an encoder; train a classifier from it.')
    check_size(resolved, None, batch, torch.device(device))
    model = resolved.create().to(device).eval()
    count = int(model.num_classes)
    if not count:
        raise ZooError(f'{resolved.spec} has no classes: give a file trained by this package, or a NAME.TAG with '
                       f'classes.')
    labels = label_names(model.pretrained_cfg)
    return model, labels if len(labels) == count else [str(i) for i in range(count)], resolved.readout


def image_files(given: Sequence[Path]) -> list[Path]:
    """Replace the folders among `given` by the images below them, sorted, hidden ones left out.

    What is missing, or empty, is kept among several, and found unreadable.
    """
    files: list[Path] = []
    for path in given:
        if not path.exists() and len(given) == 1:
            raise ZooError(f'There is no image or folder {path}.')
        inside = [path]
        if path.is_dir():
            with Finder(path) as finder:
                inside = sorted(path / name for name in finder.images(path))
        if not inside and len(given) == 1:
            raise ZooError(f'There are no images in {path}: expected files that end in {" ".join(EXTENSIONS)}.')
        files += inside or [path]
    return files


def is_one(images: Any, channels: int, grey: bool) -> bool:
    """Return whether this is one image, not several; [3, H, W] and [H, W, 4] are one, [N, H, W] are several in grey.

    ZooError for [3, H, W] of unlike planes where the weights may be of `grey` images.
    """
    if hasattr(images, 'ndim'):     # a nested tensor has neither shape nor length, and is refused as an image
        shape = [] if getattr(images, 'is_nested', False) else [*images.shape]
        if grey and len(shape) == 3 and shape[0] == 3 and shape[2] > 4 and _differ(images):
            _, height, width = shape
            raise ZooError(f'images is [3, {height}, {width}], one color image or three grey ones: give '
                           f'[1, 3, {height}, {width}] or [3, 1, {height}, {width}].')
        return getattr(images, 'is_nested', False) or images.ndim == 2 or (images.ndim == 3 and (
            images.shape[0] in (1, 3, channels) or images.shape[2] in (1, 2, 3, 4, channels)))
    return not isinstance(images, Iterable) or isinstance(images, str)


def _differ(images: Any) -> bool:
    """Return whether an array has unlike planes; not of a sparse tensor, which is refused as an image."""
    return getattr(images, 'layout', torch.strided) == torch.strided and bool((images != images[:1]).any())


def problem_of(path: Path) -> str:
    """Read the header; return why the file is no image that can be classified, '' if it is one."""
    try:
        with open_image(path):
            pass
    except Exception as e:  # every decoder has its own errors for a damaged file
        return one_line(e)
    return ''


def classify(
        model: nn.Module, labels: Sequence[str], images: Sequence[Any], topk: int | None, batch_size: int,
        readout: Readout = PLAIN,
) -> list[list[dict[str, Any]] | str]:
    """Return the `topk` classes of each image, the most probable first; or why it cannot be read.

    Without `topk` five; where an image may have several labels, all above a probability of 0.5.
    An image is a path, a Pillow image, an array or a tensor.
    """
    cfg = preprocessing(model)
    transform = create_transform(**cfg, is_training=False) if cfg['input_size'][0] in (1, 3) else None
    device = next(model.parameters()).device
    results: list[list[dict[str, Any]] | str] = []
    quiet = len(images) <= batch_size
    with torch.inference_mode(), Progress(len(images), quiet=quiet, lines=False) as progress:
        for start in range(0, len(images), batch_size):
            found = [_read(image, transform, cfg) for image in images[start:start + batch_size]]
            sound = [image for image in found if isinstance(image, Tensor)]
            top = iter(_top(model, torch.stack(sound).to(device), labels, topk, readout) if sound else ())
            results += [image if isinstance(image, str) else next(top) for image in found]
            progress.show(len(results))
    return results


def _read(image: Any, transform: Callable[[Any], Tensor] | None, cfg: Mapping[str, Any]) -> Tensor | str:
    try:
        size, pixels = cfg['input_size'], deep_pixels(image)
        if pixels is not None:
            return normalize(cropped(pixels, size[1:], size[0], cfg['crop_pct'])[None], cfg['mean'], cfg['std'])[0]
        if transform is None:
            raise ValueError(f'it is grey or RGB, expected {size[0]} channels')
        if not isinstance(image, (str, Path)):
            return transform(as_channels(as_image(image), 3))
        with open_image(user_path(image)) as opened:
            rgb = as_channels(upright(opened), 3)
        return transform(rgb)
    except Exception as e:  # every decoder has its own errors for a damaged file
        return one_line(e)


def _top(model: nn.Module, images: Tensor, labels: Sequence[str], topk: int | None, readout: Readout,
         ) -> list[list[dict[str, Any]]]:
    several = readout.multi_label and topk is None
    logits = model(images)
    check_logits(logits, len(labels))
    logits = logits.float()
    check_finite(logits)
    top = readout(logits).topk(len(labels) if several else min(topk or 5, len(labels)))
    return [[{'index': i, 'label': labels[i], 'probability': p} for i, p in zip(indices, values, strict=True)
             if p > 0.5 or not several]
            for indices, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
