"""A small convolutional network that trains in minutes: the baseline for these pictures, and a teacher for the models.

After the network of "94% on CIFAR-10 in 3.29 seconds" (arXiv 2404.00498), written from its description: a fixed
convolution that whitens 2 x 2 patches (`whiten` in a recipe sets it), three stages of two 3 x 3 convolutions that begin
as the identity, scaled logits. Ours: norms and head are torch's usual ones. Images of any size from 16 pixels up.
"""
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, get_device_dtype, to_2tuple
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ..errors import ZooError
from ._arguments import check_arguments
from ._build import build_model, feature_take_indices, register_family


def _channels_last(x: Tensor) -> Tensor:
    """Put the channels last, which is faster; ExecuTorch does not know that order."""
    if not torch.jit.is_scripting():    # of its own: TorchScript would compile the rest of a condition
        if torch.compiler.is_exporting():
            return x
    return x.contiguous(memory_format=torch.channels_last)


class Stage(nn.Sequential):
    """Two convolutions, the first one followed by pooling."""

    def __init__(self, dim: int, out_dim: int, **dd: Any) -> None:
        super().__init__(
            _conv(dim, out_dim, **dd), nn.MaxPool2d(2), nn.BatchNorm2d(out_dim, momentum=0.4, **dd), nn.GELU(),
            _conv(out_dim, out_dim, **dd), nn.BatchNorm2d(out_dim, momentum=0.4, **dd), nn.GELU())


class FastCNN(nn.Module):
    """`img_size` is for the record: the layers take any size."""

    def __init__(self, img_size: int | tuple[int, int] = 32, in_chans: int = 3, num_classes: int = 10,
                 global_pool: str = 'max', dims: tuple[int, ...] = (64, 256, 256), drop_rate: float = 0.,
                 logit_scale: float = 1 / 9, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.img_size, self.in_chans = to_2tuple(img_size), in_chans
        if min(self.img_size) <= 2 ** len(dims):
            raise ZooError(f'img_size is {img_size}, expected more than {2 ** len(dims)}: each stage halves it.')
        self.num_features = self.head_hidden_size = dims[-1]
        self.drop_rate, self.logit_scale, self.grad_checkpointing = drop_rate, logit_scale, False
        self.whiten = nn.Conv2d(in_chans, 8 * in_chans, 2, **dd)
        widths = (8 * in_chans, *dims)
        self.stages = nn.Sequential(*[Stage(*pair, **dd) for pair in zip(widths, dims, strict=False)])
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.reset_classifier(num_classes)
        self.feature_info = [dict(num_chs=dim, reduction=2 ** i, module=f'stages.{i - 1}')
                             for i, dim in enumerate(dims, start=1)]

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] -> [B, D, H / 8, W / 8]."""
        x = F.gelu(self.whiten(_channels_last(x)))
        if not torch.jit.is_scripting():
            if self.grad_checkpointing:
                return checkpoint_seq(self.stages, x)
        return self.stages(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass; batch norms learn their statistics twice, as in timm."""
        self.grad_checkpointing = enable

    def forward_intermediates(self, x: Tensor, indices: int | list[int] | None = None, norm: bool = False,
                              stop_early: bool = False, output_fmt: str = 'NCHW',
                              intermediates_only: bool = False) -> Any:
        """Return the maps after the stages of `indices`; the arguments are timm's."""
        assert output_fmt == 'NCHW', 'Output shape must be NCHW.'
        taken, last = feature_take_indices(len(self.stages), indices)
        x = F.gelu(self.whiten(_channels_last(x)))
        maps = []
        for i, stage in enumerate(self.stages[:last + 1] if stop_early else self.stages):
            x = stage(x)
            maps += [x] if i in taken else []
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(self, indices: int | list[int] | None = 1, prune_norm: bool = False,
                                  prune_head: bool = True) -> list[int]:
        """Drop the stages after the last of `indices`, and with `prune_head` the head."""
        taken, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[:last + 1]
        if prune_head:
            self.reset_classifier(0, '')
        return taken

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; what the classifier itself returns is scaled by `logit_scale`."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits or self.num_classes == 0 else self.head(x) * self.logit_scale

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head (`num_classes=0`: none) and, if given, the pooling ('': none)."""
        check_arguments(type(self), {'num_classes': num_classes})
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.num_classes, dd = num_classes, get_device_dtype(self)
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes else nn.Identity()
        self.train(self.training)

    def no_weight_decay(self) -> set[str]:
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(stem=r'^whiten', blocks=r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.(\d+)')


def _conv(dim: int, out_dim: int, **dd: Any) -> nn.Conv2d:
    conv = nn.Conv2d(dim, out_dim, 3, padding=1, bias=False, **dd)
    nn.init.dirac_(conv.weight.data[:dim])     # the first channels begin as the identity, the others at random
    return conv


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: FastCNN, source_size: Any = None) -> dict[str, Tensor]:
    given, own = state_dict.get('whiten.weight'), model.whiten.weight
    if isinstance(given, Tensor) and given.ndim == 4 and given.shape[1] != own.shape[1]:
        raise ZooError(f'These weights take {given.shape[1]} channels, for each of which the first layer has filters: '
                       f'give such images, or pretrained=False (NAME.untrained) for {own.shape[1]} channels.')
    return dict(state_dict)


register_family(__name__, partial(
    build_model, FastCNN, filter_fn=checkpoint_filter_fn), {
    'fast_cnn': ('c10', 32, {}),
    'fast_cnn_half': ('c10', 32, dict(dims=(32, 128, 128))),
}, pool_size=(3, 3), first_conv='whiten', paper_ids='arXiv:2404.00498',
    paper_name='94% on CIFAR-10 in 3.29 Seconds on a Single GPU')
