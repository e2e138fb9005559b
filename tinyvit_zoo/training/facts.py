"""What decides the weights and figures of a run beside its recipe: all its processes, and those that resume it, must
have the same.
"""
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.images import EncodedImages
from ..data.sources import Source
from ..data.splits import Split, digests_of
from ..errors import ZooError
from ..methods import Task
from ..recipes import BaseRecipe, Recipe
from ..runtime.world import World
from ..weights.files import check_cfg, tensors_digest
from ..weights.resolve import preprocessing, read_recipe
from ..weights.trained import keep_trained_on
from .run_dir import Run, checkpoints, differences

_KEPT = 'mean', 'std', 'input_size'


def facts_of(task: Task, options: Any, source: Source) -> dict[str, Any]:
    """Return them for recipe.json. Images are read, where they were not before."""
    splits = [split for split in (source.train, source.val, source.test) if split is not None]
    contents = {images: images.contents() for images in dict.fromkeys(split.images for split in splits)}

    def seen(split: Split | None) -> str:
        if split is None:
            return 'none'
        places = b'' if split.index is None else split.index.numpy().tobytes()
        return _digest(split.labels.numpy().tobytes(), places, contents[split.images].encode())
    facts: dict[str, Any] = {
        'data': {'source': source.name, 'images': len(source.train),
                 'labels': _digest(source.train.labels.numpy().tobytes()),
                 'contents': contents[source.train.images][:16], 'val': seen(source.val), 'test': seen(source.test),
                 'class_names': _digest(json.dumps(task.cfg.get('label_names', [])).encode())},
        'cfg': {key: task.cfg[key] for key in (*_KEPT, 'num_classes', 'multi_label')},
        'val_fraction': source.val_fraction if options.val_fraction is None else options.val_fraction,
        'fraction': options.fraction, 'processes': task.world.size,
        'precision': options.precision, 'compile': options.compile}
    if getattr(task.recipe, 'keep', '') == 'best':
        facts['eval_every'] = options.eval_every
    if getattr(task.recipe, 'from_weights', '') and not begun_cfg(options):
        facts['start'] = _digest_of(task.network)
    if task.distilled is not None:
        facts['teacher'] = _digest_of(task.distilled)
        if isinstance(task.recipe, Recipe):     # else it sees the images as the student does
            cfg = preprocessing(task.distilled)
            facts |= {f'teacher_{key}': cfg[key] for key in _KEPT}
    return facts


def fingerprints(source: Source) -> list[str]:
    """Return what changes when a file of the images is written to."""
    images = dict.fromkeys(split.images for split in (source.train, source.val, source.test) if split is not None)
    return [each.fingerprint() for each in images if isinstance(each, EncodedImages)]


def _digest_of(model: Any) -> str:
    return tensors_digest({key: value.cpu() for key, value in model.state_dict().items()})[:16]


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b''.join(parts)).hexdigest()[:16]


def open_run(run: Run, task: Task, options: Any, source: Source) -> None:
    """Open the run directory, in the first process; ZooError if the others have other images, or cannot see it."""
    world = task.world
    with world.first_alone():       # the others find its digests of the images
        facts = facts_of(task, options, source)
    check_alike(world, {**facts, 'data': {**facts['data'], 'source': ''}})      # another name may be of the same

    def begin() -> None:
        begun = options.resume and (run.folder / 'recipe.json').exists()
        run.open(task.recipe, facts, options.resume)
        if isinstance(task.recipe, Recipe):
            keep_trained_on(run.folder, digests_of(source.train), runs_before(task.recipe), begun)
    in_first(world, begin)
    shared = world.gather(world.first or _appears(run.folder / 'recipe.json'))

    def check() -> None:
        if not all(shared):
            raise ZooError(f'{run.folder} is not there for all processes: choose an output on a disk that all machines '
                           f'share.')
    in_first(world, check)


def runs_before(recipe: BaseRecipe) -> list[str]:
    """Name the weights that the run begins with, and its teacher: their training images count as its own."""
    return [spec for name in ('from_weights', 'teacher') if (spec := getattr(recipe, name, ''))]


def check_alike(world: World, stated: Mapping[str, Any]) -> None:
    """Raise ZooError where another process states something else: the processes would wait for each other."""
    first, *others = world.gather(json.loads(json.dumps(stated)))
    odd = next(filter(None, (differences(first, other) for other in others)), [])

    def check() -> None:
        if odd:
            raise ZooError(f'The processes of this training differ ({"; ".join(odd)}): start all with the same recipe, '
                           f'options and images.')
    in_first(world, check)


def _appears(path: Path) -> bool:
    """Return whether a file of another machine can be seen here, after some seconds on a slow disk."""
    for _ in range(20):
        if path.exists():
            return True
        time.sleep(0.5)
    return False


def in_first(world: World, act: Callable[[], None]) -> None:
    """Call `act` in the first process. If it raises ZooError, that process reports it and all end."""
    problem = ''
    if world.first:
        try:
            act()
        except ZooError as e:
            problem = str(e)
    if world.gather(problem)[0]:
        raise ZooError(problem) if world.first else SystemExit(2)


def begun_cfg(options: Any) -> Mapping[str, Any]:
    """Return `cfg` of a run to resume whose checkpoints hold its weights; {} of any other, or of an older version."""
    folder: Path = options.output
    if not (options.resume and (folder / 'recipe.json').exists() and checkpoints(folder)):
        return {}
    cfg = read_recipe(folder).get('cfg', {})
    check_cfg(cfg, f'In {folder / "recipe.json"}', others=True)
    return cfg if cfg.keys() >= {*_KEPT} else {}


def to_begin(recipe: BaseRecipe, options: Any, start: Path | None) -> Any:
    """Return the recipe with the weights to begin with: `start` where given, none where a checkpoint holds all."""
    recipe = replace(recipe, from_weights=str(start)) if start else recipe  # type: ignore[call-arg]
    # those of the Hub and of other places that timm looks up may shape the model
    if isinstance(recipe, Recipe) and ':' not in recipe.from_weights and begun_cfg(options):
        return replace(recipe, from_weights='')
    return recipe
