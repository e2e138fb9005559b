"""Classify image files of any kind that Pillow reads."""
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_model_data_config
from torch import nn
from tqdm import tqdm

from ..data.images import EXTENSIONS, as_channels, upright
from ..errors import ZooError
from ..runtime.text import one_line
from ..weights.resolve import resolve


def label_names(cfg: Any) -> list[str]:
    """Return a name for each class, from the cfg or timm's ImageNet lists; none where neither has them."""
    names = cfg.get('label_names')
    if not names and (subset := infer_imagenet_subset(dict(cfg))):
        names = ImageNetInfo(subset).label_descriptions()
    return list(names or ())


def load_classifier(name: str, weights: Path | None, device: str) -> tuple[nn.Module, list[str]]:
    """Load `NAME.TAG`, or `weights` into its architecture; return the model and a name or number for each class."""
    resolved = resolve(f'{name}={weights}' if weights else name)
    if resolved.untrained:
        raise ZooError(f'There are no weights of {resolved.architecture}: give some by --weights FILE.')
    if not weights and not resolved.cfg['num_classes']:
        raise ZooError(f'{name} has no classes to predict: it is an encoder, to train a classifier from.')
    model = resolved.create().to(device).eval()
    count = int(model.num_classes)
    if not count:
        raise ZooError(f'{weights} does not state its classes, nor does {name}: expected a file of our training, or a '
                       f'NAME.TAG with classes.')
    labels = label_names(model.pretrained_cfg)
    return model, labels if len(labels) == count else [str(i) for i in range(count)]


def image_files(given: Sequence[Path]) -> list[Path]:
    """Replace the folders among `given` by the images below them, sorted, hidden ones left out."""
    files: list[Path] = []
    for path in given:
        if not path.exists():
            raise ZooError(f'There is no image or folder {path}.')
        inside = [path] if path.is_file() else sorted(
            p for p in path.rglob('*') if p.suffix.lower() in EXTENSIONS and p.is_file()
            and not any(part.startswith('.') for part in p.relative_to(path).parts))
        if not inside:
            raise ZooError(f'There are no images in {path}: expected files that end in {" ".join(EXTENSIONS)}.')
        files += inside
    return files


def check_image(path: Path) -> None:
    """Read the header; raise ZooError if the file is no image."""
    with _opened(path):
        pass


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image, undecoded; errors here and inside the `with` become a ZooError that names it."""
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as e:
        raise ZooError(f'{path} is not an image that Pillow reads: leave it out.') from e
    except Exception as e:  # every decoder has its own errors for a damaged file
        raise ZooError(f'{path} cannot be read as an image ({one_line(e)}): repair it or leave it out.') from e


def classify(
        model: nn.Module, labels: Sequence[str], paths: Sequence[Path], topk: int, batch_size: int,
) -> list[list[dict[str, Any]]]:
    """Return the `topk` classes of each image, the most probable first."""
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    device = next(model.parameters()).device
    batches = [paths[i:i + batch_size] for i in range(0, len(paths), batch_size)]
    hidden = True if len(batches) == 1 else None  # None: unless stderr is a terminal
    results = []
    with torch.inference_mode(), tqdm(batches, unit='batch', leave=False, disable=hidden) as progress:
        for batch in progress:
            images = []
            for path in batch:
                with _opened(path) as image:
                    rgb = as_channels(upright(image), 3)
                images.append(transform(rgb))
            top = model(torch.stack(images).to(device)).float().softmax(-1).topk(min(topk, len(labels)))
            results += [
                [{'index': i, 'label': labels[i], 'probability': p} for i, p in zip(indices, values, strict=True)]
                for indices, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
    return results
