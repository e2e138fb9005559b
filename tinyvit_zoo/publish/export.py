"""A model as ONNX or as a program of torch.export, and whether that gives what the model gives."""
from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ZooError

TOLERANCE = 1e-4        # between two logits of float32
Function = Callable[[Tensor], Tensor]


def require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise ZooError(f"ONNX needs {e.name}, which is not installed: pip install 'tinyvit-zoo[export]'.") from e


# -- exporting ---------------------------------------------------------------------------------------------------------
def export(
        model: nn.Module, input_size: Sequence[int], path: Path, any_size: bool = False, int8: bool = False,
) -> dict[str, Any]:
    """Write `path` (.onnx or .pt2) and check it; ZooError where it does not give what the model gives."""
    model = copy.deepcopy(model).eval()
    if path.suffix == '.onnx':
        module: Any
        for module in model.modules():
            if hasattr(module, 'fused_attn'):
                module.fused_attn = False   # the plain formula; ONNX's runtimes fuse it by themselves
    program = _program(model, input_size, any_size)
    if path.suffix == '.onnx':
        _write_onnx(program, path)
    else:
        torch.export.save(program, path)
    sizes = [tuple(input_size[1:])]
    if any_size:
        sizes += [_other_size(model, input_size)]
    exported = load_exported(path)
    worst = torch.tensor([difference(exported, model, (input_size[0], *size)) for size in sizes]).max().item()
    if not worst <= TOLERANCE:
        raise ZooError(f'{path.name} gives other numbers than the model (by {worst:.1e}, at most {TOLERANCE:g} is '
                       f'rounding): it was not written; export the other format, and tell the maintainers.')
    if int8:
        _quantize(path)
    return {'format': path.suffix[1:], 'any_size': any_size, 'int8': int8, 'largest_difference': worst}


def _program(model: nn.Module, input_size: Sequence[int], any_size: bool) -> Any:
    """`torch.export` with a free batch, and free height and width where they are wanted."""
    images = torch.randn(2, *input_size)
    shape: dict[int, Any] = {0: torch.export.Dim('batch')}
    if any_size:
        shape.update({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC})
        images = torch.randn(2, input_size[0], *_other_size(model, input_size))
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(model, (images,), dynamic_shapes=(shape,), strict=False)
    except Exception as e:  # the exporter has many of its own
        raise ZooError(_refusal(e, any_size)) from e
    return program


def _other_size(model: nn.Module, input_size: Sequence[int]) -> tuple[int, int]:
    """Twice as high and three times as wide: whole patches and windows, whatever they are."""
    return 2 * input_size[1], 3 * input_size[2]


def _refusal(error: Exception, any_size: bool) -> str:
    if any_size:
        return (f'The model does not take images of any size ({_short(error)}): leave --any-size out, --img-size sets '
                f'another one.')
    return f'torch.export cannot export the model ({_short(error)}): tell the maintainers.'


def _short(error: BaseException) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:120]}'


def _write_onnx(program: Any, path: Path) -> None:
    try:
        with _quiet():
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=['images'], output_names=['logits'])
        assert exported is not None
        exported.save(str(path), external_data=False)
    except Exception as e:  # as above
        raise ZooError(f'The model cannot be written as ONNX ({_short(e)}): give an OUT that ends in .pt2.') from e


def _quantize(path: Path) -> None:
    """Weights of linear layers to 8 bits, a scale a channel; activations are quantised as they come.

    Convolutions and the products of attention stay in float32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path)
    del graph.graph.value_info[:]   # torch noted them before it transposed weights; the quantiser trips
    try:
        with _quiet():
            quantize_dynamic(graph, path, op_types_to_quantize=['Gemm', 'MatMul'], per_channel=True,
                             weight_type=QuantType.QInt8, extra_options={'MatMulConstBOnly': True})
        load_exported(path)
    except Exception as e:  # ONNX and its runtime have many of their own
        raise ZooError(f'The model cannot be brought to 8 bits ({_short(e)}): leave --int8 out.') from e


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own reports on what they do."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


# -- checking ----------------------------------------------------------------------------------------------------------
def load_exported(path: Path) -> Function:
    """The logits of an exported file, on the CPU."""
    if path.suffix == '.pt2':
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(None, {'images': images.numpy()})[0])


@torch.inference_mode()
def difference(exported: Function, model: Function, input_size: Sequence[int]) -> float:
    """The largest between two logits, on random images, of batches that are not the exported one."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, *input_size, generator=generator) for count in (1, 3)]
    return torch.stack([(exported(images) - model(images)).abs().max() for images in batches]).max().item()  # keeps NaN
