"""Export models to ONNX or torch.export, for normalized batches of any size, with their preprocessing beside the file.

The file gets its name only after it has given the model's logits on random and, where given, test images.
"""
import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ZooError
from ..measure.bench import Bench, open_bench_source
from ..runtime.files import check_path, written_whole
from ..runtime.text import one_line
from ..runtime.world import World
from ..version import __version__
from ..weights.resolve import Loaded

TOLERANCE = 1e-4        # between two logits of float32
Function = Callable[[Tensor], Tensor]


def require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise ZooError(f"ONNX needs {e.name}, which is not installed: pip install 'tinyvit-zoo[export]'.") from e


def export_with_preprocessing(loaded: Loaded, output: Path, any_size: bool = False, int8: bool = False,
                              data: str = '') -> dict[str, Any]:
    """Write `output` (.onnx or .pt2) and, as .json, preprocessing and checks (`data`: on test images); return those."""
    bench = None
    if data:
        bench = Bench(loaded, open_bench_source(data, 'test'), 'test', World(0, 1, torch.device('cpu')), None, 64)
        bench.check_classes('give the data it was trained on, or leave --data out')
    beside = output.with_suffix('.json')
    with written_whole(output, shared=True) as partial, written_whole(beside, shared=True) as partial_beside:
        figures = export(loaded.model, loaded.cfg['input_size'], partial, any_size=any_size, int8=int8)
        report = {**_preprocessing(loaded), **figures}
        if bench:
            report['measured'] = {'data': data, **_compare(bench, load_exported(partial), strict=not int8)}
        report['sha256'] = hashlib.sha256(partial.read_bytes()).hexdigest()
        partial_beside.write_text(json.dumps(report, indent=1), encoding='utf-8')
    return report


def check_replaceable(output: Path) -> None:
    """Raise ZooError if the .json beside `output` would replace something that no export wrote, or for an odd name."""
    check_path(output)
    beside = output.with_suffix('.json')
    if not beside.exists():
        return
    content = None
    with suppress(OSError, ValueError):
        content = json.loads(beside.read_text(encoding='utf-8'))
    if not isinstance(content, dict) or 'made_by' not in content or content.get('format') != output.suffix[1:]:
        raise ZooError(f'{beside} exists and is not from an export to {output.name}: choose another name.')


def _preprocessing(loaded: Loaded) -> dict[str, Any]:
    """Describe inputs and outputs for users who have the file alone."""
    cfg = loaded.cfg
    names = (loaded.model.pretrained_cfg or {}).get('label_names') or []
    return {
        'model': loaded.title, 'made_by': f'tinyvit_zoo {__version__}', 'input': 'images', 'output': 'logits',
        'probabilities': loaded.readout.formula,
        'layout': 'float32 [batch, channels, height, width]' + ', RGB' * (cfg['input_size'][0] == 3),
        'steps': 'resize (the shorter side to height / crop_pct), crop the middle, divide by 255 (16 bits: by 65535), '
                 'subtract mean, divide by std',
        'input_size': list(cfg['input_size']), 'interpolation': cfg['interpolation'], 'crop_pct': cfg['crop_pct'],
        'mean': list(cfg['mean']), 'std': list(cfg['std']), 'num_classes': loaded.model.num_classes,
        'label_names': list(names)}


@torch.inference_mode()
def _compare(bench: Bench, exported: Function, strict: bool) -> dict[str, Any]:
    """Return the accuracy of the model and of the file, and how far they differ; ZooError if `strict` and too far."""
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
        raise ZooError(f'The exported file gives other logits than the model on {bench.source.name} (by {worst:.1e}, '
                       f'expected at most {TOLERANCE:g}): it was not written; tell the maintainers.')
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
def export(model: nn.Module, input_size: Sequence[int], path: Path, any_size: bool = False,
           int8: bool = False) -> dict[str, Any]:
    """Write `path` (.onnx or .pt2); raise ZooError if it does not give the logits of the model."""
    model = copy.deepcopy(model).eval()
    channels, height, width = input_size
    sizes = [(channels, height, width)]
    if any_size:
        sizes.append((channels, 2 * height, 3 * width))     # whole patches and windows, whatever they are
    if path.suffix == '.onnx':
        write_onnx(model, sizes[-1], path, any_size)
    else:
        program = _program(model, sizes[-1], any_size)
        try:
            torch.export.save(program, path)
        except RuntimeError as e:   # torch's own writer has no OSError
            raise ZooError(f'The exported file cannot be written ({one_line(e)}): make room.') from e
    exported = load_exported(path)
    worst = torch.tensor([difference(exported, model, size) for size in sizes]).max().item()
    if not worst <= TOLERANCE:
        raise ZooError(f'The exported file gives other logits than the model (by {worst:.1e}, expected at most '
                       f'{TOLERANCE:g}): it was not written; export the other format, and tell the maintainers.')
    if int8:
        _quantize(path)
    return {'format': path.suffix[1:], 'any_size': any_size, 'int8': int8, 'largest_difference': worst}


def write_onnx(model: nn.Module, input_size: Sequence[int], path: Path, any_size: bool = False,
               outputs: Sequence[str] = ('logits',)) -> None:
    """Write `path`; the model's attention is set to its plain formula, which ONNX's runtimes fuse by themselves."""
    module: Any
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = False
    program = _program(model, input_size, any_size)
    try:
        onnx: Any = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=['images'], output_names=list(outputs))
        onnx.save(str(path), external_data=False)
    except OSError:
        raise
    except Exception as e:  # the exporter has many of its own
        raise ZooError(f'The model cannot be written as ONNX ({one_line(e)}): give an OUT ending in .pt2.') from e


def _program(model: nn.Module, input_size: Sequence[int], any_size: bool) -> Any:
    """Export with a free batch, and with free height and width for `any_size`."""
    images = torch.randn(2, *input_size)
    shape: dict[int, Any] = {0: torch.export.Dim('batch')}
    if any_size:
        shape.update({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC})
    try:
        with torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes=(shape,), strict=False)
    except Exception as e:  # the exporter has many of its own
        if any_size:
            raise ZooError(f'The model does not take images of any size ({one_line(e)}): leave --any-size out.') from e
        raise ZooError(f'torch.export cannot export the model ({one_line(e)}): tell the maintainers.') from e


def _quantize(path: Path) -> None:
    """Quantize linear weights to 8 bits by channel, activations dynamically; convolutions, attention stay float32."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    graph = onnx.load(path)
    del graph.graph.value_info[:]   # torch noted them before it transposed weights; the quantiser trips
    try:
        quantize_dynamic(graph, path, op_types_to_quantize=['Gemm', 'MatMul'], per_channel=True,
                         weight_type=QuantType.QInt8, extra_options={'MatMulConstBOnly': True})
        load_exported(path)
    except Exception as e:  # ONNX and its runtime have many of their own
        raise ZooError(f'The model cannot be quantized ({one_line(e)}): leave --int8 out.') from e


def load_exported(path: Path) -> Function:
    """Return a function from images to the logits of an exported file, on the CPU."""
    if path.suffix == '.pt2':
        return torch.export.load(path).module()
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(None, {'images': images.numpy()})[0])


@torch.inference_mode()
def difference(exported: Function, model: Function, input_size: Sequence[int]) -> float:
    """Return the largest difference between logits on random images, for batch sizes other than the exported one."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, *input_size, generator=generator) for count in (1, 3)]
    return torch.stack([(exported(images) - model(images)).abs().max() for images in batches]).max().item()  # keeps NaN
