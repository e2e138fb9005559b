"""Small encoders of every kind for the joint-embedding methods; and a training step shared by two processes."""
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tinyvit_zoo.methods import MoCoV3, SelfDistillation
from tinyvit_zoo.runtime.world import join_world

ENCODERS: dict[str, dict[str, Any]] = {
    'vit_lite_2_4': {}, 'cvt_2_4': {}, 'cct_2_3x2': {}, 'cct_2_3x2 sine': dict(pos_embed='sine'),
    'sl_vit': dict(depth=1),
    'plain_vit': dict(depth=1), 'sl_cait': dict(depth=1, class_depth=1), 'sl_pit': dict(depths=(1, 1, 1)),
    'plain_pit': dict(depths=(1, 1, 1)), 'sl_swin': dict(depths=(1, 1, 1)), 'sl_t2t': dict(depth=1),
    'ssl_vit': dict(depth=2), 'ssl_swin': dict(depths=(1, 1, 1)), 'ssl_cait': dict(depth=1, class_depth=1),
    'mae_vit_c10': dict(depth=1, img_size=36), 'mae_lite_vit_tiny': dict(depth=1, img_size=64),
}


def encoder_of(name: str, **kwargs: Any) -> Any:
    return timm.create_model(name.partition(' ')[0], **{'num_classes': 0, **ENCODERS[name], **kwargs})


def make(method: str) -> nn.Module:
    """Small, in double precision, and nothing random in it."""
    torch.manual_seed(0)
    encoder = encoder_of('vit_lite_2_4', img_size=8, attn_drop_rate=0., drop_path_rate=0.)
    if method == 'moco_v3':
        return MoCoV3(encoder, hidden_dim=24, dim=8).double().train()
    return SelfDistillation(
        encoder, hidden_dim=16, bottleneck_dim=8, num_prototypes=12, freeze_last=0.).double().train()


def views_of(method: str, batch: int = 8) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(1)
    shapes = [(2, batch, 3, 8, 8)] + [(3, batch, 3, 4, 4)] * (method == 'self_distill')
    return [torch.randn(shape, generator=numbers, dtype=torch.float64) for shape in shapes]


def steps(method: Any, forward: Any, views: list[Tensor], parts: int = 1) -> list[float]:
    """Three of them by SGD: the losses."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    losses = []
    for step in range(3):
        total = 0.
        for some in zip(*(view.chunk(parts, 1) for view in views), strict=True):
            loss = forward(*some) / parts
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step((step + 1) / 5)
        losses.append(total)
    return losses


def _work(folder: Path) -> None:
    with join_world('cpu') as world:
        for name in ('moco_v3', 'self_distill'):
            method = make(name)
            forward = nn.parallel.DistributedDataParallel(method)
            views = [view[:, world.rank::2] for view in views_of(name)]
            losses = world.sum(torch.tensor(steps(method, forward, views)))
            torch.save({'losses': losses / 2, 'state': method.state_dict()}, folder / f'{name}-{world.rank}.pt')


if __name__ == '__main__':
    _work(Path(sys.argv[1]))
