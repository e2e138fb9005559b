"""The self-supervised lightweight ViTs (arXiv 2205.14443, MAE-Lite), pre-trained and fine-tuned.

The paper's learning rates are for 256 images; here they are for the whole batch. Layer decay and drop path are for
pre-trained weights (`from_weights`). The teacher of the distillation is MAE's ViT-Base of 1600 epochs, from timm.
"""
from dataclasses import replace
from typing import Any

from .base import Pretraining, Recipe

# the paper's "default" fine-tuning
_DEFAULT = Recipe(
    name='', about='', dataset='in1k', img_size=224, epochs=100, batch_size=1024, lr=4e-3, weight_decay=0.05,
    layer_decay=0.85, warmup_epochs=5, min_lr=1e-6, schedule='later_cosine',
    crop_scale=(0.08, 1.), crop_interpolation='bicubic', crop_pct=0.875,
    auto_augment='rand-m9-mstd0.5-inc1', mixup=0.8, cutmix=1., smoothing=0.1, erase=0.25,
    model_args={'drop_path_rate': 0.1})
# and its "improved" one
_IMPROVED = replace(
    _DEFAULT, epochs=300, auto_augment='rand-m10-mstd0.5-inc1', mixup=0.2, cutmix=0., smoothing=0., erase=0.,
    model_args={})

# to CIFAR-100, enlarged to 224 px
_TRANSFER = Recipe(
    name='', about='', dataset='c100', mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    img_size=224, epochs=50, batch_size=512, opt='nesterov',
    lr=0.1, weight_decay=0., clip=1., layer_decay=0.75, warmup_epochs=10, schedule='later_cosine',
    crop_scale=(0.08, 1.), crop_interpolation='bicubic')


_TINY, _RPE, _SMALL = 'mae_lite_vit_tiny', 'mae_lite_vit_tiny_rpe', 'mae_lite_vit_small'
_SCRATCH = 'From scratch, with the settings of the improved fine-tuning without layer decay (our choice).'
_LONG = replace(_IMPROVED, epochs=1000)
_ROWS: list[tuple[Recipe, str, str, float | None, float, str]] = [   # base, name, from, top-1, layer decay, about
    (_DEFAULT, f'{_TINY}.in1k_mae_ft100', f'{_TINY}.in1k_mae_400e', 76.2, 0.85, 'Default fine-tuning after MAE.'),
    (_IMPROVED, f'{_TINY}.in1k_mae', f'{_TINY}.in1k_mae_400e', 78.0, 0.85, 'Improved fine-tuning after MAE.'),
    (_IMPROVED, f'{_TINY}.in1k_dmae', f'{_TINY}.in1k_dmae_400e', 78.4, 0.85,
     'Improved fine-tuning after MAE with distillation.'),
    (_IMPROVED, f'{_TINY}.in1k_d2mae', f'{_TINY}.in1k_d2mae_400e', 78.7, 0.85,
     'Improved fine-tuning after MAE with decoupled distillation.'),
    (_IMPROVED, f'{_TINY}.in1k_moco3', f'{_TINY}.in1k_moco3_400e', 76.8, 0.75, 'Improved fine-tuning after MoCo-v3.'),
    (_IMPROVED, f'{_TINY}.in1k', '', 75.8, 1., _SCRATCH),
    (_LONG, f'{_RPE}.in1k_mae_1000e', f'{_TINY}.in1k_mae_400e', 79.0, 0.85,
     'Fine-tuning for 1000 epochs with relative positions.'),
    (_LONG, f'{_RPE}.in1k_d2mae_1000e', f'{_TINY}.in1k_d2mae_400e', 79.4, 0.85,
     'Fine-tuning for 1000 epochs with relative positions, after decoupled distillation.'),
    (_IMPROVED, f'{_SMALL}.in1k', '', 80.2, 1., _SCRATCH),
    (_IMPROVED, f'{_SMALL}.in1k_mae', f'{_SMALL}.in1k_mae_400e', 82.1, 0.75, 'Improved fine-tuning after MAE.'),
    (_IMPROVED, f'{_SMALL}.in1k_dmae', f'{_SMALL}.in1k_dmae_400e', 82.5, 0.75,
     'Improved fine-tuning after MAE with distillation.'),
    (_TRANSFER, f'{_TINY}.c100_mae', f'{_TINY}.in1k_mae_400e', None, 0.75, 'Transfer to CIFAR-100 at 224 px.'),
]
RECIPES = [
    replace(base, name=name, from_weights=weights, published=top1, layer_decay=decay, about=about)
    for base, name, weights, top1, decay, about in _ROWS
]

_PRETRAINING = Pretraining(
    name='', about='', dataset='in1k', method='mae_lite', img_size=224, epochs=400, batch_size=4096, lr=2.4e-3,
    betas=(0.9, 0.95), weight_decay=0.05, warmup_epochs=40, crop_scale=(0.08, 1.), crop_interpolation='bicubic')
_DISTILLED: dict[str, Any] = dict(method='d_mae', teacher='vit_base_patch16_224.mae')
_SMALL_DECODER = {'decoder_dim': 192, 'decoder_heads': 6}


def _pretraining(name: str, about: str, **changes: Any) -> Pretraining:
    return replace(_PRETRAINING, name=name, about=f'{about}, 400 epochs on ImageNet.', **changes)


_MOCO = Pretraining(
    name=f'{_TINY}.in1k_moco3_400e', dataset='in1k', method='moco_v3',
    about='MoCo-v3, 400 epochs on ImageNet. Weight decay on all parameters and bicubic crops are our choice.',
    img_size=224, epochs=400, batch_size=1024, lr=6e-4, weight_decay=0.1, decay_all=True, warmup_epochs=40,
    crop_scale=(0.08, 1.), crop_interpolation='bicubic')

PRETRAININGS = [
    _MOCO,
    _pretraining(f'{_TINY}.in1k_mae_400e', 'MAE'),
    _pretraining(f'{_TINY}.in1k_dmae_400e', 'MAE with distillation of the attention', **_DISTILLED),
    _pretraining(f'{_TINY}.in1k_d2mae_400e', 'MAE with decoupled distillation of the attention', **_DISTILLED,
                 method_args={'decoder_block': 8}),
    _pretraining(f'{_SMALL}.in1k_mae_400e', 'MAE', method_args=_SMALL_DECODER),
    _pretraining(f'{_SMALL}.in1k_dmae_400e', 'MAE with distillation of the attention', **_DISTILLED,
                 method_args=_SMALL_DECODER),
]
