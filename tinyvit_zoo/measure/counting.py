"""Count what a model costs: parameters, multiply-adds, activations and memory.

A multiply-add (MAC) is one multiplication and one addition in a convolution, a linear layer or a product of matrices,
attention's two products included, by whichever kernel it runs: half the figure of `torch.utils.flop_counter`. Norms,
activations, softmax and additions are not counted, as in papers.
"""
from __future__ import annotations

import math
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

from ..errors import ZooError
from ..runtime.text import one_line

InputSize = int | tuple[int, ...] | None
_aten, _zoo = torch.ops.aten, torch.ops.tinyvit_zoo
# fused attention that not every release of torch has a formula for; each takes q, k, v first
_FUSED = (_aten._scaled_dot_product_flash_attention_for_cpu, _aten._scaled_dot_product_attention_math_for_mps,
          _aten._scaled_dot_product_fused_attention_overrideable)
_ATTENTION = (*_FUSED, _aten._scaled_dot_product_efficient_attention, _aten._scaled_dot_product_flash_attention,
              _aten._scaled_dot_product_cudnn_attention)


@dataclass(frozen=True)
class Part:
    """A child of the model, or a parameter of its own."""
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
    activations: int    # of the whole batch: values that come out of what `macs` counts, and attention's logits
    parts: Mapping[str, Part]

    @property
    def frozen(self) -> int:
        return self.params - self.trainable


def count(model: nn.Module, input_size: InputSize = None, batch: int = 1) -> Count:
    """Count `model` by one pass in evaluation mode, on the device it is on ('meta' takes no time).

    `input_size`: side, (height, width) or (channels, height, width); None: what the model is built for.
    """
    size = image_size(model, input_size)
    formulas = dict.fromkeys(_FUSED, _attention_flops)
    with _mode(model, train=False), FlopCounterMode(display=False, custom_mapping=formulas) as counter, \
            Ledger() as ledger:
        _run(model, size, batch)
    by_module = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    return Count(
        size, batch, *_sizes(model.parameters()), sum(b.numel() for b in model.buffers()), by_module.get('Global', 0),
        ledger.activations, _parts(model, by_module))


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def image_size(model: Any, given: InputSize = None) -> tuple[int, int, int]:
    """Return channels, height and width of the images that a model is built for, where `given` has none."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    channels, *sides = cfg.get('input_size', (3,))
    sides = getattr(model, 'img_size', getattr(getattr(model, 'patch_embed', None), 'img_size', None)) or sides
    channels = getattr(model, 'in_chans', channels)
    if given is not None:
        sides = (given, given) if isinstance(given, int) else given[-2:]
        channels = channels if isinstance(given, int) or len(given) < 3 else given[0]
    if len(sides) != 2:
        raise ZooError(f'{type(model).__name__} does not say what images it takes: give input_size.')
    return channels, *sides


def _sizes(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """Return the numbers of values, and of those that take gradients."""
    sizes = [(p.numel(), p.numel() * p.requires_grad) for p in parameters]
    return sum(size for size, _ in sizes), sum(size for _, size in sizes)


def _parts(model: nn.Module, by_module: Mapping[str, int]) -> dict[str, Part]:
    """Return the parameters of the model's own and its children, in order."""
    prefix, parts = type(model).__name__, {}
    for name, parameter in model.named_parameters(recurse=False):
        parts[name] = Part(*_sizes([parameter]), 0)
    for name, child in model.named_children():
        part = Part(*_sizes(child.parameters()), by_module.get(f'{prefix}.{name}', 0))
        if part.params or part.macs:
            parts[name] = part
    rest = by_module.get('Global', 0) - sum(part.macs for part in parts.values())
    return {**parts, 'rest': Part(0, 0, rest)} if rest else parts


@contextmanager
def _mode(model: nn.Module, train: bool) -> Iterator[None]:
    """Set training mode with gradients, or evaluation without; then restore the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.set_grad_enabled(train):
            model.train(train)
            yield
    finally:
        for module, training in modes:
            module.training = training


def _run(model: nn.Module, size: tuple[int, int, int], batch: int, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """Return the output for a batch of zeros, with `tensors` in place of the model's parameters and buffers."""
    like = _floating((tensors or dict(model.named_parameters())).values())
    try:
        return functional_call(model, dict(tensors or {}), (like.new_zeros(batch, *size),))
    except ZooError:
        raise
    except (RuntimeError, ValueError, AssertionError) as e:
        raise ZooError(
            f'{type(model).__name__} cannot take {batch} x {" x ".join(map(str, size))}: {one_line(e)}') from e


def _floating(tensors: Iterable[Tensor]) -> Tensor:
    """Return a tensor that has the type and device for images."""
    return next((t for t in tensors if t.is_floating_point()), torch.empty(0))


# -- activations and memory --------------------------------------------------------------------------------------------
class Ledger(TorchDispatchMode):
    """Add up activations, and the bytes of what operators make for as long as anything holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.activations = self.bytes = self.peak = 0
        self._held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self.hold(tensor)   # of before, as soon as it is used
        out = func(*args, **(kwargs or {}))
        tensors = _tensors(out)
        if tensors and (func._overloadpacket in flop_registry or func._overloadpacket in _ATTENTION):
            self.activations += _activations(func._overloadpacket, args, tensors[0])
        for tensor in tensors:
            self.hold(tensor)
        return out

    def hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.bytes -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _activations(op: Any, args: tuple[Any, ...], out: Tensor) -> int:
    """Return the number of values that come out of an operator; of attention's, with its logits."""
    if op in _ATTENTION:
        return out.numel() + math.prod(args[0].shape[:-1]) * args[1].shape[-2]
    if op in (_zoo.dropout_attention, _zoo.locality_attention):
        return out.numel() // out.shape[-1] * (out.shape[-1] + out.shape[1])
    if op is _zoo.window_attention:
        qkv, _, bias, order, _ = args
        return qkv.shape[0] * qkv.shape[3] * len(order) * (qkv.shape[4] + bias.shape[-1])  # as padded
    return out.numel()


def peak_memory(model: nn.Module, input_size: InputSize = None, batch: int = 1, train: bool = False) -> int:
    """Return the peak of bytes held: weights, buffers, images, and what operators make while it is needed.

    With `train`: of a forward and backward pass with gradients, without an optimizer's state. Counted on shapes, so
    that nothing is computed; a real device also holds libraries, workspaces, and what its allocator keeps.
    """
    size = image_size(model, input_size)
    tensors = {name: torch.empty_like(t, device='meta', requires_grad=t.requires_grad)
               for name, t in (*model.named_parameters(), *model.named_buffers())}
    with _mode(model, train), Ledger() as ledger, _FusedAttention():
        for tensor in tensors.values():
            ledger.hold(tensor)
        out = _run(model, size, batch, tensors)
        if train and out.requires_grad:
            out.sum().backward()
    return ledger.peak


class _FusedAttention(TorchFunctionMode):
    """Run attention by the kernel that GPUs have for every mask, and that never holds the logits; 'meta' has none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and all(t.ndim == 4 for t in args[:3]):
            return _efficient_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _efficient_attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:
    if attn_mask is not None:
        attn_mask = attn_mask.to(q.dtype).expand(*q.shape[:-1], k.shape[-2])
    if enable_gqa:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    return _aten._scaled_dot_product_efficient_attention(
        q, k, v, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]


# -- as papers counted -------------------------------------------------------------------------------------------------
def fvcore_macs(model: nn.Module, input_size: InputSize = None) -> dict[str, int]:
    """Return the multiply-adds of one image by operator, as fvcore counts, the counter of many papers.

    Fused attention and our operators, which it would skip, are counted; so are norms (five for each value of a
    LayerNorm) and poolings, unlike in `count`. It traces a model that holds values: not one on 'meta'.
    """
    try:
        from fvcore.nn import FlopCountAnalysis
        from fvcore.nn.jit_handles import get_shape
    except ImportError as e:
        raise ZooError("fvcore is missing: pip install 'tinyvit-zoo[analysis]'.") from e

    def handle(formula: Any) -> Any:
        return lambda inputs, outputs: formula(*map(get_shape, inputs), out_val=None) // 2

    handles = {str(op).replace('.', '::'): handle(formula) for op, formula in flop_registry.items()
               if 'tinyvit_zoo.' in str(op)}
    images = _floating(model.parameters()).new_zeros(1, *image_size(model, input_size))
    with _mode(model, train=False):
        analysis = FlopCountAnalysis(model, images).set_op_handle(
            **handles, **{'aten::scaled_dot_product_attention': handle(_attention_flops)})
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
        return {name: int(macs) for name, macs in analysis.by_operator().items()}
