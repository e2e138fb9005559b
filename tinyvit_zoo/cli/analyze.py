"""`tinyvit-zoo analyze KIND MODEL...`: a picture worth putting in a paper, and beside it the numbers as npz."""
from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ZooError, nearest
from ..runtime.files import written_whole
from ..runtime.picture import require_matplotlib, write_picture
from ..runtime.text import table

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..data.splits import Split
    from ..interpret.attention import Maps
    from ..weights.resolve import Loaded

NAME = 'analyze'
SUMMARY = 'draw attention, similarity of layers and maps over images, and save the numbers'
EXAMPLES = '''
tinyvit-zoo analyze attention runs/a mae_vit_c10=b.safetensors --data cifar10:PATH
tinyvit-zoo analyze maps cct_7_3x1 --files photos/
tinyvit-zoo analyze support sl_
'''
_SHOWN = 6              # images in the picture of pooling weights


# -- options -----------------------------------------------------------------------------------------------------------
def add(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(title='analyses', metavar='KIND', dest='kind', required=True)
    for name, (_, summary, models, images) in _KINDS.items():
        kind = kinds.add_parser(name, help=summary, description=f'{summary[0].upper()}{summary[1:]}.')
        kind.add_argument('models', metavar='MODEL', nargs=models, help=(
            "NAME[.TAG] of the zoo or timm's, NAME.untrained, NAME=FILE, or the directory of a training run"
            if name != 'support' else 'beginning of a name, or with wildcards (default: all of the zoo)'))
        if name == 'support':
            continue
        kind.add_argument('--output', type=Path, default=Path('analysis'), metavar='DIR', help='default: analysis')
        kind.add_argument('--format', default='png', choices=['png', 'pdf', 'svg'], help='of the picture')
        kind.add_argument('--device', default='auto', help='cpu, cuda, cuda:1, ... (default: cuda where there is one)')
        if images:
            _add_images(kind, images)
        if name == 'similarity':
            kind.add_argument('--batch-size', type=int, default=256, metavar='N', help='images of one estimate')
        if name == 'maps':
            kind.add_argument('--layer', type=int, default=-1, metavar='I', help='from 0, or from the end (-1: last)')
            kind.add_argument('--query', metavar='ROW,COL', help='whose attention (default: the class token, or the '
                                                                 'mean of the patches)')


def _add_images(kind: argparse.ArgumentParser, images: int) -> None:
    kind.add_argument('--data', metavar='SOURCE', help='digits, npz:FILE, folder:DIR, cifar10:DIR, ...')
    kind.add_argument('--split', default='test', choices=['train', 'val', 'test'], help='of SOURCE (default: test)')
    kind.add_argument('--files', type=Path, nargs='+', metavar='IMAGE', help='files and folders, in place of --data')
    kind.add_argument('--images', type=int, default=images, metavar='N', help=f'drawn at random (default: {images})')
    kind.add_argument('--seed', type=int, default=0, help='of the draw')


def run(args: argparse.Namespace) -> str:
    """Writes the pictures and the numbers; returns what they say in short."""
    if args.kind == 'support':
        return _support(args.models)
    require_matplotlib()  # before anything is computed
    _check(args)
    from ..runtime.world import join_world
    from ..weights.resolve import resolve

    with join_world(args.device) as world:
        subjects = [resolve(spec).load(world.device) for spec in args.models]
        return _KINDS[args.kind][0](args, subjects, world.device)


def _check(args: argparse.Namespace) -> None:
    for name in ('images', 'batch_size'):
        if getattr(args, name, 1) < 1:
            raise ZooError(f'--{name.replace("_", "-")} is {getattr(args, name)}, expected a number from 1 up.')
    if args.kind == 'similarity' and len(args.models) > 2:
        raise ZooError(f'{len(args.models)} models are given, expected one or two: the layers of one, or of two.')
    if len(set(args.models)) < len(args.models):
        raise ZooError('A model is given twice: leave one out.')


# -- one function a kind -----------------------------------------------------------------------------------------------
def _attention(args: argparse.Namespace, subjects: Sequence[Loaded], device: torch.device) -> str:
    from ..interpret.attention import images_at_once, reach
    from ..interpret.plots import plot_reach
    from ..interpret.tabular import reach_arrays, reach_text

    sizes = [images_at_once(subject.model) for subject in subjects]  # refuses before images are read
    split = _images(args)
    found = {subject.title: reach(subject.model, _shown(subject, split, size, device))
             for subject, size in zip(subjects, sizes, strict=True)}
    for title, each in found.items():
        _write(args, [title], {**reach_arrays(each), 'images': len(split)})
    texts = [reach_text(title, each) for title, each in found.items()]
    return '\n\n'.join([*texts, _write_picture(args, list(found), plot_reach(found))])


def _similarity(args: argparse.Namespace, subjects: Sequence[Loaded], device: torch.device) -> str:
    from ..interpret.places import feature_names
    from ..interpret.plots import plot_similarity
    from ..interpret.similarity import LEAST, similarity

    names = [feature_names(subject.model) for subject in subjects]
    split = _images(args)
    size = min(args.batch_size, len(split))
    if size < LEAST:
        raise ZooError(f'Layers are compared on {size} images at a time, expected {LEAST} or more: give more images.')
    split = split.select(split.labels.new_ones(len(split)).cumsum(0)[:len(split) // size * size] - 1)  # whole batches
    first, *other = ((subject.model, _shown(subject, split, size, device)) for subject in subjects)
    found = similarity(*first, *(other[0] if other else ()))
    titles = [subject.title for subject in subjects]
    layers = {f'layers_{letter}': each for letter, each in zip('ab', names, strict=False)}
    _write(args, titles, {**{k: v.numpy() for k, v in found.items()}, **layers, 'images': len(split), 'batch': size})
    lines = [f'{pair}: {values.shape[0]} x {values.shape[1]} layers, CKA {values.min():.3f} to {values.max():.3f}, '
             f'mean {values.mean():.3f}' for pair, values in found.items()]
    flat = [name for letter, each in zip('ab', names, strict=False)
            for name, value in zip(each, found[letter * 2].diagonal(), strict=False) if not value]
    if flat:
        lines.append(f'Features that tell the images apart no better than chance, given as 0: {", ".join(flat)}.')
    return '\n'.join([*lines, _write_picture(args, titles, plot_similarity(found, titles))])


def _maps(args: argparse.Namespace, subjects: Sequence[Loaded], device: torch.device) -> str:
    from ..interpret.attention import images_at_once, no_rollout
    from ..interpret.places import attention_layers
    from ..interpret.plots import plot_maps

    patch = _query(args.query)
    sizes = [images_at_once(subject.model) for subject in subjects]  # refuses before images are read
    split, lines = _images(args), []
    found = [_maps_of(subject, split, size, device, args.layer, patch)
             for subject, size in zip(subjects, sizes, strict=True)]
    for subject, (pixels, maps) in zip(subjects, found, strict=True):
        arrays = {'heads': maps.heads.numpy(), 'layer': maps.layer.name, 'query': maps.query,
                  'names': [split.name(i) for i in range(len(split))]}
        _write(args, [subject.title], {**arrays, **({} if maps.rollout is None else {'rollout': maps.rollout.numpy()})})
        count = len(attention_layers(subject.model))
        lines.append(f'{subject.title}: {maps.layer.name} of {count} layers, attention from {maps.query}')
        if maps.rollout is None:
            lines.append(f'{subject.title} has no rollout: {no_rollout(subject.model)}.')
        lines.append(_write_picture(args, [subject.title], plot_maps(pixels, maps, subject.title)))
    return '\n'.join(lines)


def _maps_of(
        subject: Loaded, split: Split, size: int, device: torch.device, layer: int, patch: tuple[int, int] | None,
) -> tuple[Tensor, Maps]:
    """Pixels [B, H, W, C] and maps of all the images."""
    import torch

    from ..interpret.attention import Maps, attention_maps
    from ..interpret.images import displayed

    parts = [(displayed(subject, images), attention_maps(subject.model, images, layer, patch))
             for images in _shown(subject, split, size, device)]
    pixels, maps = zip(*parts, strict=True)
    rolled = None if maps[0].rollout is None else torch.cat([part.rollout for part in maps])
    return torch.cat(pixels), Maps(maps[0].layer, maps[0].query, torch.cat([part.heads for part in maps]), rolled)


def _pooling(args: argparse.Namespace, subjects: Sequence[Loaded], device: torch.device) -> str:
    import torch

    from ..interpret.attention import Pooling, no_pooling, pooling_weights
    from ..interpret.images import displayed
    from ..interpret.plots import plot_pooling

    _refuse(subjects, 'pooling weights', no_pooling)
    split, lines = _images(args), []
    for subject in subjects:
        parts: list[Pooling] = []
        shown: list[Tensor] = []
        for images in _shown(subject, split, 64, device):
            parts.append(pooling_weights(subject.model, images))
            shown += list(displayed(subject, images[:max(0, _SHOWN - len(shown))]))
        pooling = Pooling(torch.cat([p.maps for p in parts]), torch.cat([p.prefix for p in parts]), parts[0].stride)
        _write(args, [subject.title], {'maps': pooling.maps.numpy(), 'prefix': pooling.prefix.numpy(),
                                       'names': [split.name(i) for i in range(len(split))]})
        uniform = pooling.maps[0].numel() + pooling.prefix.shape[1]
        top = pooling.maps.flatten(1).amax(1).mean() * uniform
        beside = f', {100 * pooling.prefix.sum(1).mean():.1f} % on the class token' if pooling.prefix.numel() else ''
        lines += [f"{subject.title}: {len(split)} images, an image's largest weight is {top:.2f} times a uniform one"
                  f'{beside}',
                  _write_picture(args, [subject.title], plot_pooling(torch.stack(shown), pooling, subject.title))]
    return '\n'.join(lines)


def _temperatures(args: argparse.Namespace, subjects: Sequence[Loaded], device: torch.device) -> str:
    from ..interpret.plots import plot_temperatures
    from ..interpret.tables import no_temperatures, temperatures
    from ..interpret.tabular import ragged

    _refuse(subjects, 'temperatures', no_temperatures)
    found, lines = {subject.title: temperatures(subject.model) for subject in subjects}, []
    for title, layers in found.items():
        _write(args, [title], {'layers': list(layers), 'temperature': ragged(list(layers.values()))})
        lines += [f'{title}: {len(layers)} layers; what multiplies the logits of a head, over where it started',
                  *(f'{name:20} {"  ".join(f"{value:.3f}" for value in values)}' for name, values in layers.items())]
    return '\n'.join([*lines, _write_picture(args, list(found), plot_temperatures(found))])


def _positions(args: argparse.Namespace, subjects: Sequence[Loaded], device: torch.device) -> str:
    from ..interpret.plots import plot_positions
    from ..interpret.tables import no_positions, position_similarity

    _refuse(subjects, 'table of positions', no_positions)
    lines = []
    for subject in subjects:
        found = position_similarity(subject.model)
        _write(args, [subject.title], {'similarity': found.numpy()})
        picture = _write_picture(args, [subject.title], plot_positions(found, f'{subject.title}: positions'))
        rows, cols = found.shape[:2]
        beside = [found[:, :-1, :, 1:].diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1),
                  found[:-1, :, 1:].diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1)]
        near = [f'{values.mean():.3f}' if values.numel() else '-' for values in beside]
        lines += [f'{subject.title}: {rows} x {cols} positions, cosine {found.mean():.3f} in the mean, {near[0]} with '
                  f'the neighbour to the right, {near[1]} with that below', picture]
    return '\n'.join(lines)


# -- what is defined for which model -----------------------------------------------------------------------------------
def _refuse(subjects: Sequence[Loaded], what: str, why_not: Callable[[Any], str]) -> None:
    for subject in subjects:
        if why_not(subject.model):
            raise ZooError(f'{subject.title} has no {what}: {why_not(subject.model)}.')


def reasons(model: Any) -> dict[str, str]:
    """For each analysis why a model cannot have it, or ''."""
    from ..interpret.attention import no_pooling, no_rollout
    from ..interpret.places import no_attention, no_features
    from ..interpret.tables import no_positions, no_temperatures

    return {
        'attention': no_attention(model), 'maps': no_attention(model),
        'rollout': no_attention(model) or no_rollout(model), 'similarity': no_features(model),
        'pooling': no_pooling(model), 'temperatures': no_temperatures(model), 'positions': no_positions(model)}


def _support(patterns: Sequence[str]) -> str:
    """A table of the analyses each model can have, with a footnote for each reason why not."""
    from fnmatch import filter as matching

    import timm

    from ..models import list_models

    names: list[str] = []
    for pattern in patterns or ['*']:
        wild = pattern if any(c in pattern for c in '*?[') else f'{pattern}*'
        matches = matching(list_models(), wild) or ([pattern] if timm.is_model(pattern) else [])
        names += matches
        if not matches:
            raise ZooError(f'No model matches {pattern!r}.{nearest(pattern, list_models())}')
    notes: dict[str, int] = {}
    rows = []
    for name in dict.fromkeys(names):
        found = reasons(timm.create_model(name, device='meta'))
        rows.append([name, *('yes' if not why else f'({notes.setdefault(why, len(notes) + 1)})'
                             for why in found.values())])
    rows.insert(0, ['model', *found])
    footnotes = (f'({number}) {why}' for why, number in notes.items())
    return '\n'.join([table(rows, left=range(len(rows[0]))), '', *footnotes])


# -- images in, files out ----------------------------------------------------------------------------------------------
def _images(args: argparse.Namespace) -> Split:
    from ..interpret.images import draw_images, open_images

    return draw_images(open_images(args.data, args.split, args.files), args.images, args.seed)


def _shown(subject: Loaded, split: Split, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """The batches, with a line of progress on a terminal."""
    from ..interpret.images import batches
    from ..runtime.progress import Progress

    with Progress(len(split), subject.title, lines=False) as progress:
        for images in batches(subject, split, batch_size, device):
            yield images
            progress.show(progress.done + len(images))


def _query(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not re.fullmatch(r'\d+,\d+', text):
        raise ZooError(f'--query is {text!r}, expected ROW,COL as 3,4: whose attention is shown.')
    row, col = map(int, text.split(','))
    return row, col


def _path(args: argparse.Namespace, titles: Sequence[str], ending: str) -> Path:
    name = re.sub(r'[^\w.-]+', '_', '-'.join([args.kind, *titles])).strip('_')
    return args.output / f'{name}.{ending}'


def _write(args: argparse.Namespace, titles: Sequence[str], arrays: Mapping[str, Any]) -> None:
    import numpy as np

    args.output.mkdir(parents=True, exist_ok=True)
    with written_whole(_path(args, titles, 'npz')) as partial:
        np.savez_compressed(partial, **arrays)


def _write_picture(args: argparse.Namespace, titles: Sequence[str], figure: Figure) -> str:
    path = _path(args, titles, args.format)
    args.output.mkdir(parents=True, exist_ok=True)
    write_picture(figure, path)
    return f'picture: {path}, numbers beside it as .npz'


_KINDS: dict[str, tuple[Any, str, str, int]] = {   # function, summary, number of models, number of images
    'attention': (_attention, 'how far attention reaches and how spread it is, by layer and head', '+', 256),
    'similarity': (_similarity, 'how alike the layers of a model are, or those of two (minibatch CKA)', '+', 1024),
    'maps': (_maps, 'where the heads look on images, and attention rolled out through all layers', '+', 4),
    'pooling': (_pooling, 'the weights of sequence pooling over images', '+', 256),
    'temperatures': (_temperatures, 'the learned temperatures of locality attention', '+', 0),
    'positions': (_positions, 'how alike the positions of the table are', '+', 0),
    'support': (_support, 'which analyses each model can have', '*', 0),
}
