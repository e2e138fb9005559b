"""The analyses of models: numbers, text and pictures."""
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..augment.batched import normalize
from ..augment.spec import evaluation_transform
from ..data.channels import as_channels, fitted
from ..data.images import FileImages, with_depth
from ..data.sources import open_source
from ..data.splits import Split, generator
from ..errors import ZooError
from ..measure.prediction import image_files
from ..runtime.text import Progress, one_line
from ..weights.resolve import Loaded
from . import attention, plots
from .similarity import LEAST, feature_names, no_features, no_positions, position_similarity, similarity

_DRAW = 6               # makes this draw differ from others with the same seed
_PICTURED = 6           # images in the picture of pooling weights


@dataclass
class Analysis:
    """A picture, and its numbers by the title of the model or models."""
    text: str
    arrays: Mapping[str, Mapping[str, Any]]
    figure: Any         # of matplotlib


def open_images(data: str | None = None, split: str = 'test', files: Sequence[Path] | None = None) -> Split:
    """Open the split of a data source, or files and folders."""
    if bool(data) == bool(files):
        raise ZooError('Give --data SOURCE (digits, npz:FILE, folder:DIR, ...) or --files IMAGE..., but not both.')
    if data:
        images = getattr(open_source(data, training=False), split)
        if not images:
            raise ZooError(f'{data} has no {split} images: use another --split.')
        return images
    paths = [str(path.absolute()) for path in image_files(files or ())]
    return Split(with_depth(FileImages(Path('/'), paths)), torch.zeros(len(paths), dtype=torch.int64))


def draw_images(split: Split, count: int, seed: int = 0) -> Split:
    """Draw `count` images at random, or all in random order."""
    return split.select(torch.randperm(len(split), generator=generator(seed, _DRAW))[:count])


def _batches(loaded: Loaded, images: Split, batch_size: int) -> Iterator[Tensor]:
    """Yield the images in order, preprocessed as the weights expect [B, C, H, W], and show progress."""
    channels, *size = loaded.cfg['input_size']
    if channels not in (1, 3) and not images.images.deep:
        raise ZooError(f'{loaded.title} takes images of {channels} channels, but these are grey or RGB: give other '
                       f'images.')
    transform = None if images.images.deep else evaluation_transform(loaded.cfg)
    device = next(loaded.model.parameters()).device
    with Progress(len(images), loaded.title, lines=False) as progress:
        for start in range(0, len(images), batch_size):
            batch = []
            for i in range(start, min(start + batch_size, len(images))):
                try:
                    if transform is None:
                        pixels = fitted(images.images.pixels_at(images.number(i)), size, channels)
                        batch.append(normalize(pixels[None], loaded.cfg['mean'], loaded.cfg['std'])[0])
                        continue
                    batch.append(transform(as_channels(images.read(i), channels)))
                except Exception as e:  # every decoder has its own errors for a damaged file
                    raise ZooError(f'{images.name(i)} cannot be read ({one_line(e)}): fix or leave it out.') from e
            yield torch.stack(batch).to(device)
            progress.show(start + len(batch))


def _pixels(loaded: Loaded, images: Tensor) -> Tensor:
    """Return pixels [B, H, W, C] in 0..1 of preprocessed images."""
    mean, std = (torch.tensor(loaded.cfg[key], device=images.device)[:, None, None] for key in ('mean', 'std'))
    pixels = images * std + mean
    if pixels.shape[1] not in (1, 3):   # grey, each from its darkest to its brightest
        pixels = pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        low, high = (x.flatten(1).amax(1)[:, None, None, None] for x in (-pixels, pixels))
        pixels = (pixels + low) / (high + low).clamp(min=1e-6)
    return pixels.clamp(0, 1).permute(0, 2, 3, 1).cpu()


def _names(images: Split) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def analyze_attention(models: Sequence[Loaded], images: Split) -> list[Analysis]:
    """Measure distance and entropy of attention, by layer and head; one picture for all models."""
    reaches = {m.title: attention.reach(m.model, _batches(m, images, attention.images_at_once(m.model)))
               for m in models}
    text = '\n\n'.join(each.table(title) for title, each in reaches.items()) + '\n'
    arrays = {title: {**each.arrays(), 'images': len(images)} for title, each in reaches.items()}
    return [Analysis(text, arrays, plots.plot_reach(reaches))]


def analyze_similarity(models: Sequence[Loaded], images: Split, batch_size: int = 256) -> list[Analysis]:
    """Compare the layers of a model, or those of two, by CKA."""
    names = dict(zip('ab', (feature_names(m.model) for m in models), strict=False))
    size = min(batch_size, len(images))
    if size < LEAST:
        raise ZooError(f'Layers are compared on {size} images per batch, expected {LEAST} or more: give more images.')
    images = images.select(torch.arange(len(images) // size * size))    # whole batches
    first, *other = ((m.model, _batches(m, images, size)) for m in models)
    cka = similarity(*first, *(other[0] if other else ()))
    titles = [m.title for m in models]
    arrays = {**{pair: values.numpy() for pair, values in cka.items()},
              **{f'layers_{letter}': each for letter, each in names.items()}, 'images': len(images), 'batch': size}
    lines = [f'{pair}: {values.shape[0]} x {values.shape[1]} layers, CKA {values.min():.3f} to {values.max():.3f}, '
             f'mean {values.mean():.3f}' for pair, values in cka.items()]
    flat = [name for letter, each in names.items()
            for name, value in zip(each, cka[letter * 2].diagonal(), strict=False) if not value]
    if flat:
        lines.append(f'Features no better than chance at telling images apart, shown as 0: {", ".join(flat)}.')
    return [Analysis('\n'.join(lines), {'-'.join(titles): arrays}, plots.plot_similarity(cka, titles))]


def analyze_maps(models: Sequence[Loaded], images: Split, layer: int = -1,
                 patch: tuple[int, int] | None = None) -> list[Analysis]:
    """Map the attention of a layer's heads over images, and the rollout; arguments as for `attention_maps`."""
    analyses = []
    for loaded in models:
        model, title = loaded.model, loaded.title
        pixels, parts = zip(*((_pixels(loaded, x), attention.attention_maps(model, x, layer, patch))
                              for x in _batches(loaded, images, attention.images_at_once(model))), strict=True)
        rollout = None if parts[0].rollout is None else torch.cat([part.rollout for part in parts])
        maps = attention.Maps(parts[0].layer, parts[0].query, torch.cat([part.heads for part in parts]), rollout)
        arrays = {'heads': maps.heads.numpy(), 'layer': maps.layer.name, 'query': maps.query, 'names': _names(images)}
        count = len(attention.attention_layers(model))
        text = f'{title}: {maps.layer.name} of {count} layers, attention from {maps.query}'
        if rollout is None:
            text += f'\n{title} has no rollout: {attention.no_rollout(model)}.'
        else:
            arrays['rollout'] = rollout.numpy()
        analyses.append(Analysis(text, {title: arrays}, plots.plot_maps(torch.cat(pixels), maps, title)))
    return analyses


def analyze_pooling(models: Sequence[Loaded], images: Split) -> list[Analysis]:
    """Map the weights of sequence pooling over images."""
    analyses = []
    for loaded in models:
        parts: list[attention.Pooling] = []
        pictured: list[Tensor] = []
        for batch in _batches(loaded, images, 64):
            parts.append(attention.pooling_weights(loaded.model, batch))
            pictured += _pixels(loaded, batch[:max(0, _PICTURED - len(pictured))])
        pooling = attention.Pooling(
            torch.cat([p.maps for p in parts]), torch.cat([p.prefix for p in parts]), parts[0].stride)
        uniform = pooling.maps[0].numel() + pooling.prefix.shape[1]
        top = pooling.maps.flatten(1).amax(1).mean() * uniform
        text = f"{loaded.title}: {len(images)} images, an image's largest weight is {top:.2f} times a uniform one"
        if pooling.prefix.numel():
            text += f', {100 * pooling.prefix.sum(1).mean():.1f} % on the class token'
        arrays = {'maps': pooling.maps.numpy(), 'prefix': pooling.prefix.numpy(), 'names': _names(images)}
        figure = plots.plot_pooling(torch.stack(pictured), pooling, loaded.title)
        analyses.append(Analysis(text, {loaded.title: arrays}, figure))
    return analyses


def analyze_temperatures(models: Sequence[Loaded]) -> list[Analysis]:
    """Show the learned temperatures of locality attention; one picture for all models."""
    values = {m.title: attention.temperatures(m.model) for m in models}
    lines = []
    for title, layers in values.items():
        lines += [f'{title}: {len(layers)} layers; temperature of each head, relative to its start',
                  *(f'{name:20} {"  ".join(f"{value:.3f}" for value in heads)}' for name, heads in layers.items())]
    arrays = {title: {'layers': list(layers), 'temperature': attention.ragged([*layers.values()])}
              for title, layers in values.items()}
    return [Analysis('\n'.join(lines), arrays, plots.plot_temperatures(values))]


def analyze_positions(models: Sequence[Loaded]) -> list[Analysis]:
    """Compare the rows of the position embedding."""
    analyses = []
    for loaded in models:
        cosine = position_similarity(loaded.model)
        right, below = (f'{values.mean():.3f}' if values.numel() else '-' for values in (
            near.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1)
            for near in (cosine[:, :-1, :, 1:], cosine[:-1, :, 1:])))
        text = (f'{loaded.title}: {cosine.shape[0]} x {cosine.shape[1]} positions, cosine {cosine.mean():.3f} on '
                f'average, {right} with the neighbour to the right, {below} with that below')
        figure = plots.plot_positions(cosine, f'{loaded.title}: positions')
        analyses.append(Analysis(text, {loaded.title: {'similarity': cosine.numpy()}}, figure))
    return analyses


_NEEDS: dict[str, tuple[str, Callable[[Any], str]]] = {     # requirement, and why a model does not meet it
    'attention': ('attention that can be read', attention.no_attention),
    'maps': ('attention that can be read', attention.no_attention),
    'rollout': ('rollout', lambda model: attention.no_attention(model) or attention.no_rollout(model)),
    'similarity': ('layers to compare', no_features),
    'pooling': ('pooling weights', attention.no_pooling),
    'temperatures': ('temperatures', attention.no_temperatures),
    'positions': ('table of positions', no_positions),
}


def unsupported(model: Any) -> dict[str, str]:
    """Return for each analysis why it is undefined for a model, or ''."""
    return {kind: why_not(model) for kind, (_, why_not) in _NEEDS.items()}


def check_supported(loaded: Loaded, kind: str) -> None:
    need, why_not = _NEEDS[kind]
    if why := why_not(loaded.model):
        raise ZooError(f"{loaded.title} has no {need}: {why}. `tinyvit-zoo analyze support` lists what each model "
                       f"supports.")
