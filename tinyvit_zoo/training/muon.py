"""Muon that steps all matrices of a shape together, in a type that is fast on the device."""
from typing import Any

import torch
from timm.optim.muon import (
    _COEFFICIENTS,
    Muon,
    _is_suitable_for_muon,
    get_lr_scale,
    resolve_ns_coefficients,
    zeropower_via_newtonschulz,
)
from torch import Tensor

from ..runtime.world import autocast_dtype


def batch_matrices(optimizer: Muon) -> None:
    """Take matrices out of timm's `step`, and step them in batches. The state stays timm's."""
    taken: list[tuple[Tensor, Tensor]] = []

    def before(*_: Any) -> None:
        for group in optimizer.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for p in group['params']:
                if p.grad is None:
                    continue
                state = optimizer.state[p]
                if not state and not group.get('use_fallback') and _is_suitable_for_muon(p):
                    state.update(use_muon=True, momentum_buffer=torch.zeros_like(p))
                if state.get('use_muon'):
                    shapes.setdefault(p.flatten(1).shape, []).append(p)
            for params in shapes.values():
                _step(params, [optimizer.state[p]['momentum_buffer'] for p in params], group)
                for p in params:
                    taken.append((p, p.grad))   # type: ignore[arg-type]
                    p.grad = None

    def after(*_: Any) -> None:
        for p, grad in taken:
            p.grad = grad
        taken.clear()
    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


@torch.no_grad()
def _step(params: list[Tensor], buffers: list[Tensor], group: dict[str, Any]) -> None:
    """Step parameters of one shape as timm's Muon steps each, but orthogonalize in the type that the device is fast in.

    timm does so in bfloat16, which takes a CPU without units for it 12 to 24 times as long.
    """
    grads: Any = [p.grad for p in params]
    values, update, momentum = (
        torch.stack([each.flatten(1) for each in tensors]) for tensors in (params, grads, buffers))
    momentum.lerp_(update, 1 - group['momentum'])
    update = update.lerp_(momentum, group['momentum']) if group['nesterov'] else momentum
    update = zeropower_via_newtonschulz(
        update, group['ns_steps'], resolve_ns_coefficients(group['ns_coefficients'], _COEFFICIENTS),
        eps=group['eps'], safety_factor=group['safety_factor'], scale_eps=group['scale_eps'],
        dtype=autocast_dtype('auto', update.device) or update.dtype)
    scale = get_lr_scale(update.shape[1:], group['adjust_lr_fn']) if group['adjust_lr_fn'] else 1.
    values.mul_(1 - group['lr'] * group['weight_decay'])
    rate = group['lr'] * scale      # a tensor for CUDA graphs
    if isinstance(rate, Tensor):
        values.sub_(update * rate)
    else:
        values.sub_(update, alpha=rate)
    for tensors, new in ((params, values), (buffers, momentum)):
        torch._foreach_copy_(tensors, [each.view(t.shape) for t, each in zip(tensors, new, strict=True)])
