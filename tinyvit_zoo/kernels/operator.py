"""Registration of the CPU operators (shapes for the compiler, gradients, flop formulas), and constants made once."""
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula


def transformed() -> bool:
    """Return whether torch.func or forward-mode derivatives are at work, which would pass the operators by."""
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def operator(name: str, fake: Callable[..., Any], flops: Callable[..., int], **kwargs: Any) -> Callable[..., Any]:
    """Register the CPU operator `tinyvit_zoo::name`; `fake` makes empty outputs, `flops` counts from shapes."""
    def define(function: Callable[..., Any]) -> Any:
        op = torch.library.custom_op(f'tinyvit_zoo::{name}', function, mutates_args=(), device_types='cpu', **kwargs)
        op.register_fake(fake)
        register_flop_formula(getattr(torch.ops.tinyvit_zoo, name))(lambda *shapes, **_: flops(*shapes))
        return op
    return define


def backward_of(
        op: Any, name: str, flops: Callable[..., int], gradients: int = 1,
        saved: Callable[[tuple[Any, ...], Any], tuple[Any, ...]] = lambda inputs, output: inputs,
) -> Callable[..., Any]:
    """Register `tinyvit_zoo::name_backward`, the backward pass of `op`; `flops` takes the saved arguments.

    It maps the gradient of the first output and `saved(inputs, output)`, tensors first, to `gradients` gradients.
    """
    def fake(grad: Tensor, *arguments: Any) -> Any:
        empty = tuple(torch.empty_like(x) for x in arguments[:gradients])
        return empty if gradients > 1 else empty[0]

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        arguments = saved(inputs, output)
        ctx.save_for_backward(*[x for x in arguments if isinstance(x, Tensor)])
        ctx.values = [x for x in arguments if not isinstance(x, Tensor)]
        ctx.inputs = len(inputs)
        if isinstance(output, tuple):
            ctx.mark_non_differentiable(*output[1:])

    def define(function: Callable[..., Any]) -> Any:
        backward_op = operator(f'{name}_backward', fake, lambda grad, *shapes: flops(*shapes))(function)

        def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
            grads = backward_op(grad.contiguous(), *ctx.saved_tensors, *ctx.values)
            return (*(grads if gradients > 1 else [grads]), *[None] * (ctx.inputs - gradients))
        op.register_autograd(backward, setup_context=save)
        return backward_op
    return define


@lru_cache(maxsize=128)
def _made(make: Callable[..., Tensor], sizes: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return make(*sizes, dtype, device)


@torch.compiler.assume_constant_result
def _constant(make: Callable[..., Tensor], sizes: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return _made(make, sizes, dtype, device)


def kept(make: Callable[..., Tensor], like: Tensor, *sizes: Any, constant: bool = False) -> Tensor:
    """Return `make(*sizes, dtype, device)` of the type and device of `like`, cached; `constant`: also when compiled."""
    if constant and torch.compiler.is_dynamo_compiling():
        return _constant(make, sizes, like.dtype, like.device)
    if not torch.compiler.is_compiling() and type(like) is Tensor:
        return _made(make, sizes, like.dtype, like.device)
    return make(*sizes, like.dtype, like.device)
