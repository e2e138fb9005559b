"""Count the cost of a model: parameters, multiply-adds, activations and memory.

A multiply-add (MAC) is two FLOPs of `torch.utils.flop_counter`. Convolutions, linear layers and matrix products are
counted, with the two of attention in any kernel; norms, activations, softmax and additions are not, as in papers.
"""
import math
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from ..data.files import free_memory
from ..errors import ZooError
from ..runtime.text import one_line

InputSize = int | tuple[int, ...] | None
_aten, _zoo = torch.ops.aten, torch.ops.tinyvit_zoo
_efficient = _aten._scaled_dot_product_efficient_attention
# fused attention that not every release of torch has a formula for; each takes q, k, v first
_FUSED = (_aten._scaled_dot_product_flash_attention_for_cpu, _aten._scaled_dot_product_attention_math_for_mps,
          _aten._scaled_dot_product_fused_attention_overrideable)
_ATTENTION = (*_FUSED, _efficient, _aten._scaled_dot_product_flash_attention, _aten._scaled_dot_product_cudnn_attention)


@dataclass(frozen=True)
class Part:
    """The cost of a child of the model, or of one of its own parameters."""
    params: int
    trainable: int
    macs: int


@dataclass(frozen=True)
class Count:
    """The cost of a batch of images; `parts` sum up to the model."""
    input_size: tuple[int, int, int]
    batch: int
    params: int
    trainable: int      # parameters that take gradients
    buffers: int        # values that are no parameters: fixed tables, running means
    macs: int           # of the whole batch
    activations: int    # of the whole batch: outputs of the counted operators, and attention's logits
    parts: Mapping[str, Part]

    @property
    def frozen(self) -> int:
        return self.params - self.trainable


def count(model: nn.Module, input_size: InputSize = None, batch: int = 1) -> Count:
    """Count in one pass in evaluation mode; `input_size`: side, (h, w) or (c, h, w); default: the model's."""
    size = image_size(model, input_size)
    formulas = dict.fromkeys(_FUSED, lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v))
    with _mode(model, train=False), FlopCounterMode(display=False, custom_mapping=formulas) as counter, \
            Ledger() as ledger:
        _run(model, size, batch)
    by_module = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    macs, buffers = by_module.get('Global', 0), sum(b.numel() for b in model.buffers())
    parts = {name: Part(*_sizes(parameter), 0) for name, parameter in model.named_parameters(recurse=False)}
    for name, child in model.named_children():
        part = Part(*_sizes(*child.parameters()), by_module.get(f'{type(model).__name__}.{name}', 0))
        if part.params or part.macs:
            parts[name] = part
    if rest := macs - sum(part.macs for part in parts.values()):
        parts['rest'] = Part(0, 0, rest)
    return Count(size, batch, *_sizes(*model.parameters()), buffers, macs, ledger.activations, parts)


def _sizes(*parameters: nn.Parameter) -> tuple[int, int]:
    """Return the number of values, and of those that take gradients."""
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def image_size(model: Any, given: InputSize = None) -> tuple[int, int, int]:
    """Return channels, height and width from `given`, completed by the model's own."""
    channels, *sides = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size', (3,))
    sides = getattr(model, 'img_size', getattr(getattr(model, 'patch_embed', None), 'img_size', None)) or sides
    channels = getattr(model, 'in_chans', channels)
    if given is not None:
        sides = (given, given) if isinstance(given, int) else given[-2:]
        channels = given[0] if not isinstance(given, int) and len(given) == 3 else channels
    if len(sides) != 2:
        raise ZooError(f'{type(model).__name__} has no default input size: give input_size.')
    return channels, *sides


@contextmanager
def _mode(model: nn.Module, train: bool) -> Iterator[nn.Module]:
    """Switch to training with gradients, or to evaluation without; restore each module's mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.set_grad_enabled(train):
            yield model.train(train)
    finally:
        for module, training in modes:
            module.training = training


def _run(model: nn.Module, size: tuple[int, int, int], batch: int, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """Run a batch of zeros, with `tensors` instead of the model's own; ZooError if the images do not fit."""
    images = _zeros((tensors or dict(model.named_parameters())).values(), batch, *size)
    try:
        return functional_call(model, dict(tensors or {}), (images,))
    except ZooError:
        raise
    except (RuntimeError, ValueError, AssertionError) as e:
        shape = ' x '.join(map(str, (batch, *size)))
        raise ZooError(f'{type(model).__name__} cannot take {shape}: {one_line(e)}') from e


def _zeros(tensors: Iterable[Tensor], *shape: int) -> Tensor:
    """Return zeros of the type and device of the first floating-point tensor."""
    return next((t for t in tensors if t.is_floating_point()), torch.empty(0)).new_zeros(shape)


class TrainingFlop(TorchDispatchMode):
    """Add up the FLOP of forward passes, threefold where gradients are recorded: for the backward passes to come."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, op, times = func(*args, **(kwargs or {})), func._overloadpacket, 3 if torch.is_grad_enabled() else 1
        if op in flop_registry:
            self.flop += times * flop_registry[op](*args, **(kwargs or {}), out_val=out)
        elif op in _FUSED:
            self.flop += times * sdpa_flop_count(*(t.shape for t in args[:3]))
        return out


# -- activations and memory --------------------------------------------------------------------------------------------
class Ledger(TorchDispatchMode):
    """Count activations, and the bytes of operators' outputs while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.activations = self.bytes = self.peak = 0
        self._held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.hold((args, kwargs))  # existing tensors, as soon as they are used
        out, op = func(*args, **(kwargs or {})), func._overloadpacket
        if tensors := self.hold(out):
            if op in flop_registry or op in _ATTENTION:
                self.activations += _activations(op, args, tensors[0])
        return out

    def hold(self, tree: Any) -> list[Tensor]:
        """Add the tensors in a nested structure, and return them."""
        tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
        for storage in (tensor.untyped_storage() for tensor in tensors):
            key, size = storage._cdata, storage.nbytes()
            if key not in self._held:
                self._held.add(key)
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._release, key, size).atexit = False
        return tensors

    def _release(self, key: int, size: int) -> None:
        self._held.remove(key)
        self.bytes -= size


def _activations(op: Any, args: tuple[Any, ...], out: Tensor) -> int:
    """Return the number of values in an operator's output, and of logits that a fused one does not store."""
    if op in _ATTENTION:
        return out.numel() + math.prod(args[0].shape[:-1]) * args[1].shape[-2]
    if op in (_zoo.dropout_attention, _zoo.locality_attention):
        return out.numel() // out.shape[-1] * (out.shape[-1] + out.shape[1])
    if op is _zoo.window_attention:
        qkv, _, bias, order, _ = args
        return qkv.shape[0] * qkv.shape[3] * len(order) * (qkv.shape[4] + bias.shape[-1])  # as padded
    return out.numel()


def peak_memory(model: nn.Module, input_size: InputSize = None, batch: int = 1, train: bool = False) -> int:
    """Return the peak bytes of weights, buffers, images and operators' outputs; `train`: with gradients.

    Counted on shapes, without an optimizer (AdamW: twice the trainable parameters), libraries and allocator caches.
    """
    tensors = {name: torch.empty_like(t, device='meta', requires_grad=t.requires_grad)
               for name, t in (*model.named_parameters(), *model.named_buffers())}
    with _mode(model, train), Ledger() as ledger, _FusedAttention():
        ledger.hold(tensors)
        out = _run(model, image_size(model, input_size), batch, tensors)
        if train and out.requires_grad:
            out.sum().backward()
    return ledger.peak


MANY_PIXELS = 1 << 24   # of a batch; less has always fitted


def check_memory(title: str, device: torch.device, batch: int, image_bytes: float, macs: float) -> None:
    """Raise ZooError where a batch needs more memory than is free; else say on stderr what it costs."""
    needed, free = batch * image_bytes / 2 ** 30, free_memory(device) / 2 ** 30
    if needed > free:
        raise ZooError(f'{title} takes about {needed:,.0f} GiB of memory for a batch of {batch}, and {free:,.0f} GiB '
                       f'are free: use smaller images or a smaller batch.')
    print(f'{title} takes about {needed:,.1f} GiB of memory for a batch of {batch}, and {macs / 1e9:,.0f} G '
          f'multiply-adds an image.', file=sys.stderr, flush=True)


def image_memory(model: nn.Module, size: InputSize, train: bool = False) -> float:
    """Return the bytes that each image of a batch takes at the peak, without the weights."""
    return peak_memory(model, size, 2, train) - peak_memory(model, size, 1, train)


class _FusedAttention(TorchFunctionMode):
    """Run attention by the GPU kernel that takes any mask and stores no logits; 'meta' has no such kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and all(t.ndim == 4 for t in args[:3]):
            return _efficient_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _efficient_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.,
                         is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:
    if attn_mask is not None:
        attn_mask = attn_mask.to(q.dtype).expand(*q.shape[:-1], k.shape[-2])
    if enable_gqa:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    return _efficient(q, k, v, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]


# -- as papers counted -------------------------------------------------------------------------------------------------
def fvcore_macs(model: nn.Module, input_size: InputSize = None) -> dict[str, int]:
    """Count the multiply-adds of an image by operator with fvcore, as many papers do; not on 'meta' (it traces)."""
    # unlike `count` it counts norms ('layer_norm', five for each value) and poolings; fused attention gets a formula
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', FutureWarning)      # it scripts a function, which torch deprecates
            from fvcore.nn import FlopCountAnalysis
            from fvcore.nn.jit_handles import get_shape
    except ImportError as e:
        raise ZooError("fvcore is missing: pip install 'tinyvit-zoo[analysis]'.") from e

    def handle(formula: Any) -> Any:
        return lambda inputs, outputs: formula(*map(get_shape, inputs), out_val=None) // 2
    handles = {str(op).replace('.', '::'): handle(f) for op, f in flop_registry.items() if 'tinyvit_zoo.' in str(op)}
    handles['aten::scaled_dot_product_attention'] = handle(flop_registry[_efficient])
    images = _zeros(model.parameters(), 1, *image_size(model, input_size))
    with _mode(model, train=False):
        analysis = FlopCountAnalysis(model, images).set_op_handle(**handles)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
        return {name: int(macs) for name, macs in analysis.by_operator().items()}
