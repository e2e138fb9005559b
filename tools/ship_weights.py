#!/usr/bin/env python3
"""Ship the weights of a finished run with the package: half precision, measured, in the catalogue and the documents.

    python tools/ship_weights.py runs/digits --data digits
    python tools/ship_weights.py runs/c10 --data cifar10:DIR

The file that ships is measured in fp32 on the test images of --data. With it go the log of the run, its curves, and
inputs with their outputs, which a test compares later versions with. Nothing is written before every check has passed.
What `pretrained=True` loads does not change: `default` in catalogue.json is set by hand.
"""
from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from check_catalogue import checked
from torch import Tensor
from update_sums import sums

from tinyvit_zoo import ZooError
from tinyvit_zoo.augment.batched import normalize
from tinyvit_zoo.data.datasets import DATASETS, spec_of
from tinyvit_zoo.data.images import ArrayImages
from tinyvit_zoo.data.sources import Source, open_source
from tinyvit_zoo.measure.accuracy import evaluate
from tinyvit_zoo.measure.bench import evaluation_batches
from tinyvit_zoo.recipes import PRETRAININGS, BaseRecipe, find_pretraining, find_recipe
from tinyvit_zoo.runtime.files import write_whole
from tinyvit_zoo.runtime.world import World, join_world, machine
from tinyvit_zoo.training.run_dir import differences
from tinyvit_zoo.weights import OURS, catalogue, read_cfg, read_weights, save_weights
from tinyvit_zoo.weights.catalogue import FOLDER
from tinyvit_zoo.weights.resolve import resolve

ROOT = Path(__file__).resolve().parent.parent
CURVES, FIXTURES = ROOT / 'docs' / 'images' / 'curves', ROOT / 'tests' / 'fixtures' / 'weights'
MAX_BYTES = 55_000_000      # of all weights together, for a wheel below 60 MB
TOLERANCE = 1.              # points of top-1 between the run and the shipped file, for rounding
SECONDS = 5.                # for measuring speed
COPIES = {  # sha256 of the test images of inexact copies: the note on figures that were measured on them
    'ed874213b1287572bc88d88d4429064ae54eeeaf13226713cc51e18004be98ff':
        'Trained and measured on a copy of CIFAR-10 of which 99 images (79 for training, 20 for testing) are JPEG '
        're-encodings of the originals: the figure is a CIFAR-10 figure to within 0.2 points.',
}


# -- the run ----------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The files of a run directory, checked: it followed the recipe of its name to the end."""
    folder: Path
    recipe: BaseRecipe
    facts: dict[str, Any]
    result: dict[str, Any]
    log: str
    tensors: dict[str, Tensor]
    cfg: dict[str, Any]

    @property
    def minutes(self) -> float:
        return sum(json.loads(line)['seconds'] for line in self.log.splitlines()) / 60

    @property
    def date(self) -> str:
        return (self.folder / 'train.log').read_text(encoding='utf-8').splitlines()[-1][:10]


def read_run(folder: Path) -> FinishedRun:
    for name in ('recipe.json', 'result.json', 'log.jsonl', 'train.log', 'curves.png', 'weights.safetensors'):
        if not (folder / name).is_file():
            raise ZooError(f'{folder} is not a finished run ({name} is missing): go on with it by `tinyvit-zoo train '
                           f'RECIPE --resume`, or give another.')
    facts, result = (_read_json(folder / name) for name in ('recipe.json', 'result.json'))
    name = str(result.get('weights'))
    recipe = PRETRAININGS.get(name) or find_recipe(name)
    check_recipe(folder, recipe, facts)
    if (folder / 'pretraining' / 'recipe.json').is_file():  # the first half of one command
        first = _read_json(folder / 'pretraining' / 'recipe.json')
        check_recipe(folder / 'pretraining', find_pretraining(first['recipe']['name']), first)
    log = (folder / 'log.jsonl').read_text(encoding='utf-8')
    epochs = [row['epoch'] for row in map(json.loads, log.splitlines())]
    if epochs != list(range(1, recipe.total_epochs + 1)):
        raise ZooError(f'{folder}/log.jsonl has {len(epochs)} epochs, expected 1 to {recipe.total_epochs}: finish the '
                       f'run, or train again.')
    path = folder / 'weights.safetensors'
    return FinishedRun(folder, recipe, facts, result, log, read_weights(path), read_cfg(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as e:
        raise ZooError(f'{path} is not JSON ({e}): give the run directory as the training left it.') from e


def check_recipe(folder: Path, recipe: BaseRecipe, facts: Mapping[str, Any]) -> None:
    """Raise ZooError unless the run followed the recipe of its name to the letter, on all images."""
    texts = {'about': '', 'published': None}        # change nothing in the training
    wanted = json.loads(json.dumps(dataclasses.asdict(recipe)))
    defaults = {f.name: f.default for f in dataclasses.fields(recipe) if f.default is not dataclasses.MISSING}
    used = {**json.loads(json.dumps(defaults)), **facts['recipe']}      # a field may be newer than the run
    changes = differences({**wanted, **texts}, {**used, **texts})
    changes += [f'fraction 1 -> {facts["fraction"]}'] if facts['fraction'] != 1 else []
    held = facts['val_fraction'] if used.get('keep') != 'best' else 0.
    changes += [f'val_fraction 0 -> {held}'] if held else []
    if changes:
        raise ZooError(f'{folder} is not the recipe {recipe.name} ({"; ".join(changes)}): weights of this name are '
                       f'made by the recipe as it stands.')


def open_data(run: FinishedRun, spec: str) -> Source:
    """Open the images that the run was trained on; ZooError for others, or without test images."""
    source = open_source(spec, val_fraction=run.facts['val_fraction'], seed=run.recipe.seed)
    digest = hashlib.sha256(source.train.labels.numpy().tobytes()).hexdigest()[:16]
    trained = run.facts['data']
    if (len(source.train), digest) != (trained['images'], trained['labels']):
        raise ZooError(f'{spec} is not what {run.folder} was trained on ({trained["images"]} images of '
                       f'{trained["source"]}, other labels): give that by --data.')
    if len(source.class_names) != DATASETS[run.recipe.dataset].num_classes:
        raise ZooError(f'{spec} has {len(source.class_names)} classes, {DATASETS[run.recipe.dataset].title} '
                       f'{DATASETS[run.recipe.dataset].num_classes}: give the dataset of the recipe.')
    if source.test is None:
        raise ZooError(f'{spec} has no test images to measure the weights on: give a source that has.')
    return source


# -- the file and its figures -----------------------------------------------------------------------------------------
def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert fp32 to fp16; ZooError if a value does not fit."""
    half = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
    broken = [name for name, tensor in half.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ZooError(f'{", ".join(broken[:3])} has values that half precision cannot hold: nothing was shipped.')
    return half


def measured(run: FinishedRun, path: Path, source: Source, world: World) -> dict[str, Any] | None:
    """Measure the file at `path`; None for an encoder. ZooError if the figures differ from those of the run."""
    model = resolve(path, run.recipe.model).load(world.device).model
    if not run.cfg['num_classes']:
        return None
    figures = evaluate(model, evaluation_batches(source.test, 2 * run.recipe.batch_size, run.cfg, world), world)
    claimed = run.result['figures']['test']['top1']
    if abs(figures['top1'] - claimed) > TOLERANCE:
        raise ZooError(f'The file to ship has {figures["top1"]:.2f} % on the test images, the run {claimed:.2f} %: '
                       f'--data is other images, or half precision is not enough. Nothing was shipped.')
    dataset = DATASETS[run.recipe.dataset]
    rounded = {key: round(figures[key], 4) for key in ('top1', 'top5', 'loss') if key in figures}
    return {
        **rounded, 'images': figures['images'], 'on': f'test images of {dataset.title}', 'date': _today(),
        'command': f'tinyvit-zoo eval {run.recipe.name} --data {dataset.spec}', 'machine': _machine(machine())}


def throughput(model: torch.nn.Module, cfg: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Measure images per second of inference in fp32, the median over batches of 128."""
    images = torch.randn(128, *cfg['input_size'], device=next(model.parameters()).device)
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(3):
            model(images)
        while not times or sum(times) < SECONDS:
            begun = time.perf_counter()
            model(images)
            if images.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
    return {'images_per_second': round(len(images) / sorted(times)[len(times) // 2], 1), 'batch_size': len(images),
            'machine': _machine(machine()), 'date': _today(), 'command': command}


@torch.no_grad()
def examples(model: torch.nn.Module, cfg: Mapping[str, Any]) -> dict[str, Tensor]:
    """Make four pictures of coarse noise, as bytes, and compute the outputs for them in float64."""
    _, height, width = cfg['input_size']
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6))
    pixels = torch.nn.functional.interpolate(torch.from_numpy(noise).double(), (height, width), mode='bilinear')
    images = pixels.round().to(torch.uint8)
    inputs = normalize(images, cfg['mean'], cfg['std']).double()
    return {'images': images, 'outputs': model.cpu().double()(inputs)}


def _today() -> str:
    return datetime.date.today().isoformat()


def _machine(facts: Mapping[str, str]) -> str:
    return f'{facts["device"]}, threads: {facts["threads"]}, torch {facts["torch"]}'


# -- the entry --------------------------------------------------------------------------------------------------------
def entry(run: FinishedRun, sha256: str, figures: Mapping[str, Any] | None, note: str) -> dict[str, Any]:
    """Make the entry of the catalogue, without fields that are empty."""
    recipe, cfg, data = run.recipe, run.cfg, DATASETS[run.recipe.dataset]
    own = (tuple(cfg['mean']), tuple(cfg['std'])) != (data.mean, data.std)
    paper = timm.get_pretrained_cfg(recipe.model).paper_ids
    fields = {
        'name': recipe.name, 'dataset': recipe.dataset, 'file': f'{recipe.name}.safetensors', 'sha256': sha256,
        'input_size': list(cfg['input_size']), 'crop_pct': cfg['crop_pct'],
        'mean': list(cfg['mean']) if own else None, 'std': list(cfg['std']) if own else None,
        'origin': OURS, 'recipe': recipe.name,
        'published': {'top1': recipe.published, 'source': paper} if recipe.published else None, 'measured': figures,
        'trained': {
            'command': recipe.command(spec_of(recipe.dataset)), 'log': f'{recipe.name}.jsonl',
            'minutes': round(run.minutes, 1), 'date': run.date,
            'machine': _machine(run.facts['machine'])},
        'encoder': not cfg['num_classes'] or None, 'note': note or None}
    return {key: value for key, value in fields.items() if value is not None}


def with_entry(text: str, new: Mapping[str, Any]) -> str:
    """Add an entry to the text of a catalogue; it replaces that of the same name but for `default`."""
    entries = {entry['name']: entry for entry in json.loads(text)}
    default = {key: value for key, value in entries.get(new['name'], {}).items() if key == 'default'}
    entries[new['name']] = {'name': new['name'], **default, **new}
    changed = '[\n' + ',\n'.join(f'  {json.dumps(e, ensure_ascii=False)}' for e in entries.values()) + '\n]\n'
    checked(changed)
    return changed


def check_room(name: str, size: int, sha256: str, replace: bool) -> None:
    """Raise ZooError if another file would be lost, or the package would grow too large."""
    old = catalogue().get(name)
    if old and old.sha256 != sha256 and not replace:
        raise ZooError(f'{name} ships already with other content: give --replace to replace it.')
    others = sum(p.stat().st_size for p in FOLDER.glob('*.safetensors') if p.name != f'{name}.safetensors')
    if others + size > MAX_BYTES:
        raise ZooError(f'{name} takes {size / 1e6:.1f} MB beside {others / 1e6:.1f} MB of others, expected at most '
                       f'{MAX_BYTES / 1e6:.0f} MB together: publish it on the Hub instead.')


# -- the command ------------------------------------------------------------------------------------------------------
def ship(args: argparse.Namespace, world: World) -> str:
    run = read_run(args.run)
    source = open_data(run, args.data)
    name, recipe = run.recipe.name, run.recipe
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f'{name}.safetensors')
        save_weights(halved(run.tensors), path, {'pretrained_cfg': json.dumps(run.cfg), 'recipe': name})
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        check_room(name, len(content), sha256, args.replace)
        figures = measured(run, path, source, world)
        if figures and args.benchmark:
            command = f'python tools/ship_weights.py RUN --data {DATASETS[recipe.dataset].source} --benchmark'
            figures['throughput'] = throughput(resolve(path, recipe.model).load(world.device).model, run.cfg, command)
        fixture = safetensors.torch.save(examples(resolve(path, recipe.model).load().model, run.cfg))
    text = with_entry((FOLDER / 'catalogue.json').read_text(encoding='utf-8'),
                      entry(run, sha256, figures, args.note or caveat(source)))
    for place in (CURVES, FIXTURES):
        place.mkdir(parents=True, exist_ok=True)
    write_whole(FOLDER / f'{name}.safetensors', content)
    write_whole(FOLDER / f'{name}.jsonl', run.log.encode())
    write_whole(FIXTURES / f'{name}.safetensors', fixture)
    write_whole(CURVES / f'{name}.png', (run.folder / 'curves.png').read_bytes())
    write_whole(FOLDER / 'catalogue.json', text.encode())   # last: until here the package is as it was
    write_whole(FOLDER.parent / 'SHA256SUMS', sums(FOLDER.parent).encode())
    if subprocess.run([sys.executable, str(ROOT / 'tools' / 'update_docs.py')], cwd=ROOT).returncode:
        raise ZooError(f'{name} ships, but the documents are not updated: correct that and run tools/update_docs.py.')
    summary = f'{figures["top1"]:.2f} % of {figures["images"]} images' if figures else 'an encoder, without a figure'
    return (f'{name} ships: {len(content) / 1e6:.2f} MB, {summary}. What pretrained=True loads is unchanged: see '
            f'`default` in catalogue.json. Look at `git status`, run tests/weights, commit.')


def caveat(source: Source) -> str:
    """Return the note for figures on these test images, if they are a known inexact copy of the dataset."""
    images = source.test.images if source.test else None
    return COPIES.get(hashlib.sha256(images.pixels.numpy()).hexdigest(), '') if isinstance(images, ArrayImages) else ''


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        'ship_weights.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', metavar='RUN', type=Path, help='the directory of a finished run of a recipe, unedited')
    parser.add_argument('--data', metavar='SOURCE', required=True, help='what it was trained on: cifar10:DIR, ...')
    parser.add_argument('--device', default='cpu', help='to measure on (default: cpu)')
    parser.add_argument('--benchmark', action='store_true', help='measure inference speed too; on an idle machine')
    parser.add_argument('--replace', action='store_true', help='replace other weights of this name that ship already')
    parser.add_argument('--note', metavar='TEXT', default='', help='a caveat for the card')
    args = parser.parse_args(argv)
    try:
        with join_world(args.device) as world:
            print(ship(args, world))
    except ZooError as e:
        print(f'ship_weights: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
