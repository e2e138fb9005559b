"""Export models to files of several formats (formats.py), with their preprocessing beside the file.

The file gets its name only after it has given the model's logits on random and, where given, test images.
"""
import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.sources import Source
from ..data.splits import generator
from ..errors import ZooError
from ..measure.bench import Bench, open_bench_source
from ..measure.calibration import check_logits
from ..runtime.files import check_path, written_whole
from ..runtime.text import one_line, show
from ..runtime.world import World
from ..version import __version__
from ..weights.resolve import Loaded
from .formats import Function, files_of, format_of, output_of
from .int8 import check_int8, quantize

TOLERANCE = 1e-4        # between two logits of float32
CALIBRATION = 256      # images
_LOSS = 2               # points of accuracy that are said
_DRAW = 8               # makes this draw differ from others with the same seed


def export_with_preprocessing(loaded: Loaded, output: Path, any_size: bool = False, int8: bool = False,
                              data: str | Source = '') -> dict[str, Any]:
    """Write `output` and, as .json, preprocessing and checks; return those.

    `data`: check on test images too; with `int8`, activations are quantized by its training images.
    """
    bench, images = None, None
    if data:
        source = data if isinstance(data, Source) else open_bench_source(data, 'test')
        bench = Bench(loaded, source, 'test', World(0, 1, torch.device('cpu')), None, 64)
        bench.check_classes('give the data it was trained on, or leave data out')
        if int8:
            images = calibration_images(bench)
    with ExitStack() as stack:
        partial, *_, partial_beside = (
            stack.enter_context(written_whole(each)) for each in _written(output))
        figures = export(loaded.model, loaded.cfg['input_size'], partial, any_size, int8, images)
        report = {**_preprocessing(loaded), **figures}
        if bench and format_of(output).load:
            title = data if isinstance(data, str) else data.name
            report['measured'] = {'data': title, **compare(bench, load_exported(partial), strict=not int8)}
        report['bytes'] = sum(each.stat().st_size for each in files_of(partial))
        report['sha256'] = hashlib.sha256(b''.join(each.read_bytes() for each in files_of(partial))).hexdigest()
        partial_beside.write_text(json.dumps(report, indent=1), encoding='utf-8')
    return report


def calibration_images(bench: Bench) -> Tensor:
    """Return training images, drawn at random, as the model takes them."""
    train = bench.source.train
    chosen = torch.randperm(len(train), generator=generator(0, _DRAW))[:CALIBRATION]
    return torch.cat([images for images, _ in bench.batches(train.select(chosen))])


def _written(output: Path) -> list[Path]:
    """Return what an export writes: the file, for OpenVINO the weights beside, and .json, which is there first."""
    return [*files_of(output), json_of(output)] if output.suffix == '.xml' else [output, json_of(output)]


def json_of(output: Path) -> Path:
    """Return the path of the .json, whose name has the ending of the file: another format has its own."""
    return output.with_name(f'{output.name}.json')


def check_replaceable(output: Path) -> None:
    """Raise ZooError if an export to `output` would replace something that no export wrote, or for an odd name."""
    check_path(output)
    beside = json_of(output)
    foreign = output if output.is_dir() else next((path for path in _written(output)[1:-1] if path.exists()), None)
    if not beside.exists() and not foreign:
        return
    beside = beside if beside.exists() else foreign or beside
    content = None
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(beside.read_text(encoding='utf-8') if beside.is_file() else '')
    if not isinstance(content, dict) or 'made_by' not in content or content.get('format') != output.suffix[1:]:
        raise ZooError(f'{beside} exists, but not from an export to {output.name}: choose another name.')


def _preprocessing(loaded: Loaded) -> dict[str, Any]:
    """Describe inputs and outputs for users who have the file alone."""
    cfg = loaded.cfg
    names = (loaded.model.pretrained_cfg or {}).get('label_names') or []
    return {
        'model': loaded.title, 'made_by': f'tinyvit_zoo {__version__}', 'input': 'images',
        'output': output_of(loaded.model),
        'probabilities': loaded.readout.formula if loaded.model.num_classes else None, **asdict(loaded.readout),
        'layout': 'float32 [batch, channels, height, width]' + ', RGB' * (cfg['input_size'][0] == 3),
        'steps': 'resize (the shorter side to height / crop_pct), crop the middle, divide by 255 (16 bits: by 65535), '
                 'subtract mean, divide by std',
        'input_size': list(cfg['input_size']), 'interpolation': cfg['interpolation'], 'crop_pct': cfg['crop_pct'],
        'mean': list(cfg['mean']), 'std': list(cfg['std']), 'num_classes': loaded.model.num_classes,
        'label_names': list(names)}


@torch.inference_mode()
def compare(bench: Bench, exported: Function, strict: bool) -> dict[str, Any]:
    """Return the accuracy of the model and of the file, and how far they differ; ZooError if `strict` and too far.

    Print a line where the file is much less accurate.
    """
    correct, same, count, worst = [0., 0.], 0, 0, torch.zeros(())
    for images, labels in bench.batches('test'):
        logits = [function(images) for function in (bench.loaded.model, exported)]
        several = labels.ndim == 2      # an answer for each class
        answers = [each > 0 if several else each.argmax(1, keepdim=True) for each in logits]
        wanted = labels if several else labels[:, None]
        correct = [total + each.eq(wanted).double().mean(1).sum().item()
                   for total, each in zip(correct, answers, strict=True)]
        same += int((answers[0] == answers[1]).all(1).sum())
        worst = torch.maximum(worst, (logits[0] - logits[1]).abs().max())  # keeps NaN
        count += len(labels)
    if strict and not worst <= TOLERANCE:
        raise ZooError(f'The exported file differs from the model on {bench.source.name} (by {worst:.1e}, expected at '
                       f'most {TOLERANCE:g}): it was not written; please report it.')
    if (lost := 100 * (correct[0] - correct[1]) / count) > _LOSS:
        show(f'The file in 8 bits is {lost:.1f} points less accurate than the model on {bench.source.name}: prefer '
             f'float32.')
    return {'images': count, 'top1_model': 100 * correct[0] / count, 'top1': 100 * correct[1] / count,
            'same_class': 100 * same / count, 'largest_difference': worst.item()}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' warnings and logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


@quiet()
def export(model: nn.Module, input_size: Sequence[int], path: Path, any_size: bool = False, int8: bool = False,
           images: Tensor | None = None) -> dict[str, Any]:
    """Write `path`, whose ending is the format; raise ZooError if it does not give the logits of the model.

    `images`: to calibrate the 8 bits of activations by.
    """
    form = format_of(path)
    if any_size and not form.any_size:
        raise ZooError(f'{form.name} files take one image size: leave out any_size, or export to .onnx.')
    if int8:
        check_int8(path, images is not None)
    model = copy.deepcopy(model).eval()
    if model.num_classes:
        check_logits(model(torch.zeros(1, *input_size, dtype=torch.float32)))
    channels, height, width = input_size
    sizes = [(channels, height, width)]
    if any_size:
        sizes.append((channels, 2 * height, 3 * width))     # whole patches and windows, whatever they are
    form.write(model, sizes[-1], path, any_size)
    worst = None
    if form.load:
        try:
            exported = load_exported(path)
            worst = torch.tensor([difference(exported, model, size) for size in sizes]).max().item()
        except Exception as e:      # every library has its own
            raise ZooError(f'{form.name} cannot run the exported file ({one_line(e)}): it was not written; export '
                           f'another format, and please report it.') from e
        if not worst <= TOLERANCE:
            raise ZooError(f'The exported file differs from the model (by {worst:.1e}, expected at most '
                           f'{TOLERANCE:g}): it was not written; export another format, and please report it.')
    if int8:
        quantize(path, images)
    return {'format': path.suffix[1:], 'any_size': any_size, 'one_image': form.one_image,
            'int8': int8 and ('weights' if images is None else 'weights and activations'), 'largest_difference': worst}


def load_exported(path: Path) -> Function:
    """Return a function from images to the logits of an exported file, on the CPU."""
    load = format_of(path).load
    if not load:
        raise ZooError(f'{path} cannot be run here: only its own platform runs {format_of(path).name} files.')
    return load(path)


@torch.inference_mode()
def difference(exported: Function, model: Function, input_size: Sequence[int]) -> float:
    """Return the largest difference between logits on random images, for batch sizes other than the exported one."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, *input_size, generator=generator, dtype=torch.float32) for count in (1, 3)]
    return torch.stack([(exported(images) - model(images)).abs().max() for images in batches]).max().item()  # keeps NaN
