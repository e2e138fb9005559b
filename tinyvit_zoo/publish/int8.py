"""Exported files in 8 bits: weights alone, or, calibrated by images, activations too.

Weights of ONNX files have 7 bits: on CPUs with AVX2 or AVX-512 but without VNNI, sums of 8 bits overflow.
"""
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ZooError
from ..runtime.text import one_line
from .formats import FORMATS


def check_int8(path: Path, calibrated: bool) -> None:
    """Raise ZooError if a file with this ending cannot be quantized so."""
    if path.suffix not in ('.onnx', '.tflite'):
        raise ZooError('int8 is for ONNX and LiteRT: give a file that ends in .onnx or .tflite.')
    if path.suffix == '.tflite' and not calibrated:
        raise ZooError('int8 of LiteRT needs calibration images: give data.')


def quantize(path: Path, images: Tensor | None) -> None:
    """Quantize a file in its place; with `images`, activations by their range on these."""
    try:
        if path.suffix == '.tflite':
            _quantize_litert(path, images)
        elif images is None:
            _quantize_weights(path)
        else:
            _quantize_onnx(path, images)
        load = FORMATS[path.suffix].load
        assert load
        load(path)
    except Exception as e:  # the libraries have many of their own
        raise ZooError(f'The model cannot be quantized ({one_line(e)}): leave out int8.') from e


def _graph(path: Path) -> Any:
    import onnx
    graph = onnx.load(path)
    del graph.graph.value_info[:]   # shapes from before torch transposed weights, on which the quantizer fails
    return graph


def _quantize_weights(path: Path) -> None:
    """Quantize linear weights by channel, activations as they come; convolutions and attention stay float32."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    quantize_dynamic(_graph(path), path, op_types_to_quantize=['Gemm', 'MatMul'], per_channel=True,
                     weight_type=QuantType.QInt8, reduce_range=True, extra_options={'MatMulConstBOnly': True})


def _quantize_onnx(path: Path, images: Tensor) -> None:
    """Quantize convolutions, linear layers and the products of attention; weights by channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(64))

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {'images': batch.numpy()}
    quantize_static(_graph(path), path, Reader(), op_types_to_quantize=['Conv', 'Gemm', 'MatMul'], per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=True)


def _quantize_litert(path: Path, images: Tensor | None) -> None:
    """Quantize every operation that LiteRT has in 8 bits."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe
    assert images is not None
    (key, signature), = Interpreter(str(path)).get_signature_list().items()
    maker = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    ranges = maker.calibrate({key: [{signature['inputs'][0]: image[None].numpy()} for image in images]})
    result = maker.quantize(ranges)
    path.unlink()
    result.export_model(str(path))
