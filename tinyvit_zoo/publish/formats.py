"""The formats that models are exported to, by the ending of the file. Each imports its library where it is used.

A file takes normalized images [B, C, H, W] and gives logits. Those for phones and small devices take one image at a
time. `load` runs a file by the format's own runtime, so that it can be compared with the model.
"""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import torch
from timm.layers.adaptive_avgmax_pool import FastAdaptiveMaxPool, SelectAdaptivePool2d
from torch import Tensor, nn

from ..errors import ZooError
from ..layers import SequencePool
from ..runtime.text import one_line

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """How a file with this ending is written and run; `load` is None where no runtime runs on every machine."""
    name: str
    suffix: str
    packages: tuple[str, ...]       # that are imported
    extra: str                      # of ours that installs them
    write: Callable[[nn.Module, Sequence[int], Path, bool], None]
    load: Callable[[Path], Function] | None
    one_image: bool = False         # at a time
    any_size: bool = False          # can be left open

    def require(self) -> None:
        """Raise ZooError with the command that installs what is missing."""
        for package in self.packages:
            try:
                import_module(package)
            except ImportError as e:
                raise ZooError(f"{self.name} needs {e.name or package}, which is not installed: pip install "
                               f"'tinyvit-zoo[{self.extra}]'.") from e


def format_of(path: Path) -> Format:
    """Return the format of a file by its ending."""
    if path.suffix not in FORMATS:
        raise ZooError(f'OUT is {path}, expected a name ending in {endings()}.')
    return FORMATS[path.suffix]


def endings() -> str:
    *others, last = FORMATS
    return f'{", ".join(others)} or {last}'


def files_of(path: Path) -> list[Path]:
    """Return the files of an export: a Core ML package is a folder, and OpenVINO's weights lie beside."""
    if path.suffix == '.xml':
        return [path, path.with_suffix('.bin')]
    return sorted(each for each in path.rglob('*') if each.is_file()) if path.is_dir() else [path]


def output_of(model: Any) -> str:
    return 'logits' if getattr(model, 'num_classes', 1) else 'features'


def set_formulas(model: nn.Module) -> None:
    """Set attention and the maximum over an image to formulas: converters know these, and runtimes fuse them."""
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = False   # type: ignore[assignment]
        if isinstance(module, SelectAdaptivePool2d) and isinstance(module.pool, nn.AdaptiveMaxPool2d):
            module.pool = FastAdaptiveMaxPool(isinstance(module.flatten, nn.Flatten))
            module.flatten = nn.Identity()


def program_of(model: nn.Module, input_size: Sequence[int], any_size: bool = False, batch: int | None = None) -> Any:
    """Return the program of `torch.export`, with a free batch if none is given, and free height and width if asked."""
    images = torch.randn(batch or 2, *input_size)
    shape: dict[int, Any] = {} if batch else {0: torch.export.Dim('batch')}
    if any_size:
        shape.update({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC})
    try:
        with torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes=(shape,), strict=False)
    except OSError:     # of its temporary files
        raise
    except Exception as e:  # the exporter has many of its own
        if any_size:
            raise ZooError('The model takes images of one size: leave out any_size.') from e
        raise ZooError(f'torch.export cannot export the model ({one_line(e)}): please report it.') from e


def folded(program: Any) -> Any:
    """Return the module of a program in which what needs no image, such as masks of attention, is a constant.

    Converters lack operations that make them.
    """
    module = program.module()
    known: dict[torch.fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == 'call_function' and all(each in known for each in node.all_input_nodes):
            known[node] = node.target(*torch.fx.map_arg(node.args, known.get),
                                      **torch.fx.map_arg(node.kwargs, known.get))
    for i, (node, value) in enumerate(known.items()):
        if isinstance(value, Tensor) and any(user not in known for user in node.users):
            module.register_buffer(f'constant_{i}', value)
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.get_attr(f'constant_{i}'))
    for node in reversed(known):        # also checks of what is known, which are not dead code
        if not node.users:
            module.graph.erase_node(node)
    module.recompile()
    return module


def _folded_program(model: nn.Module, input_size: Sequence[int], any_size: bool = False,
                    batch: int | None = None) -> Any:
    return program_of(folded(program_of(model, input_size, any_size, batch)), input_size, any_size, batch)


@contextmanager
def _converting(name: str) -> Iterator[None]:
    """Turn an error of a converter, which has many of its own, into a ZooError, and keep what it prints."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    except (OSError, ZooError):
        raise
    except Exception as e:
        raise ZooError(f'The model cannot be written as {name} ({one_line(e)}): give an OUT ending in .pt2.') from e


def _one_by_one(run: Function) -> Function:
    return lambda images: torch.cat([run(image[None].contiguous()) for image in images])


# -- PyTorch -----------------------------------------------------------------------------------------------------------
def _write_program(model: nn.Module, input_size: Sequence[int], path: Path, any_size: bool) -> None:
    program = program_of(model, input_size, any_size)
    buffer = BytesIO()      # on a full disk torch's own writer would abort the process
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())


def _load_program(path: Path) -> Function:
    return torch.export.load(path).module()


# -- ONNX --------------------------------------------------------------------------------------------------------------
def write_onnx(model: nn.Module, input_size: Sequence[int], path: Path, any_size: bool = False,
               outputs: Sequence[str] = ()) -> None:
    set_formulas(model)
    program = program_of(model, input_size, any_size)
    with _converting('ONNX'):
        onnx: Any = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=['images'], output_names=outputs or [output_of(model)])
        for node in onnx.model.graph:
            node.metadata_props.clear()     # they name files of this machine
        onnx.save(str(path), external_data=False)


def _load_onnx(path: Path) -> Function:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def rename_input(path: Path, name: str) -> None:
    """Give the input of an ONNX file another name."""
    import onnx
    content = onnx.load(path)
    old = content.graph.input[0].name
    content.graph.input[0].name = name
    for node in content.graph.node:
        node.input[:] = [name if each == old else each for each in node.input]
    onnx.save(content, path)


# -- OpenVINO: Intel's CPUs, GPUs and NPUs ---------------------------------------------------------------------------
def _write_openvino(model: nn.Module, input_size: Sequence[int], path: Path, any_size: bool) -> None:
    set_formulas(model)
    program = _folded_program(model, input_size, any_size)
    with _converting('OpenVINO'):
        import openvino
        converted = openvino.convert_model(program)
        converted.reshape([-1, input_size[0], -1, -1] if any_size else [-1, *input_size])
        openvino.save_model(converted, path, compress_to_fp16=False)


def _load_openvino(path: Path) -> Function:
    import openvino
    compiled = openvino.compile_model(openvino.Core().read_model(path), 'CPU', {
        'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': torch.get_num_threads()})
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


# -- LiteRT: phones, browsers, microcontrollers ------------------------------------------------------------------------
def _write_litert(model: nn.Module, input_size: Sequence[int], path: Path, any_size: bool) -> None:
    set_formulas(model)
    for module in model.modules():
        if isinstance(module, SequencePool):    # over the last axis it is one operation, and has 8 bits
            module.weights = partial(_pooling_weights, module)  # type: ignore[method-assign]
    module = folded(program_of(model, input_size, batch=1))
    with _converting('LiteRT'):
        import litert_torch
        litert_torch.convert(module, (torch.zeros(1, *input_size),)).export(str(path))


def _pooling_weights(pool: SequencePool, x: Tensor) -> Tensor:
    return pool.score(x).squeeze(2).softmax(-1).unsqueeze(2)


def _load_litert(path: Path) -> Function:
    from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(str(path), num_threads=torch.get_num_threads())
    interpreter.allocate_tensors()
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()
    (scale, zero), (out_scale, out_zero) = given['quantization'], wanted['quantization']    # scale 0: of float32

    def run(image: Tensor) -> Tensor:
        if scale:
            image = (image / scale + zero).round().clamp(-128, 127).to(torch.int8)
        interpreter.set_tensor(given['index'], image.numpy())
        interpreter.invoke()
        logits = torch.from_numpy(interpreter.get_tensor(wanted['index']))
        return (logits.float() - out_zero) * out_scale if out_scale else logits
    return _one_by_one(run)


# -- ExecuTorch: phones and embedded, by XNNPACK -----------------------------------------------------------------------
def _write_executorch(model: nn.Module, input_size: Sequence[int], path: Path, any_size: bool) -> None:
    set_formulas(model)
    program = _folded_program(model, input_size, batch=1)
    with _converting('ExecuTorch'):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


def _load_executorch(path: Path) -> Function:
    from executorch.runtime import Runtime
    content = path.read_bytes()
    program = Runtime.get().load_program(content)
    method: Any = program.load_method('forward')
    kept = content, program     # the method uses their memory
    return _one_by_one(lambda image: kept and method.execute([image])[0])


# -- Core ML: Apple's devices, which alone run it ----------------------------------------------------------------------
def _write_coreml(model: nn.Module, input_size: Sequence[int], path: Path, any_size: bool) -> None:
    set_formulas(model)
    program = _folded_program(model, input_size, batch=1).run_decompositions({})
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default:     # which coremltools does not know
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    with _converting('Core ML'):
        import coremltools
        coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS17,
                            compute_precision=coremltools.precision.FLOAT32).save(str(path))


FORMATS = {each.suffix: each for each in (
    Format('ONNX', '.onnx', ('onnx', 'onnxruntime', 'onnxscript'), 'export',
           write_onnx, _load_onnx, any_size=True),
    Format('torch.export', '.pt2', (), '', _write_program, _load_program, any_size=True),
    Format('OpenVINO', '.xml', ('openvino',), 'openvino', _write_openvino, _load_openvino, any_size=True),
    Format('LiteRT', '.tflite', ('litert_torch', 'ai_edge_litert'), 'litert', _write_litert, _load_litert, True),
    Format('ExecuTorch', '.pte', ('executorch.exir',), 'executorch', _write_executorch, _load_executorch, True),
    Format('Core ML', '.mlpackage', ('coremltools',), 'coreml', _write_coreml, None, True),
)}
