"""Ours for one GPU: the authors' images and mixing, with Muon and larger batches, mostly in fewer epochs.

The settings of Muon are those that made our weights of `cct_2_3x2` and `cct_4_3x2` on CPUs, the learning rate by the
square root of the batch. `--minutes M` chooses the epochs that fit on the GPU at hand; schedules scale with them.
"""
from dataclasses import replace
from typing import Any

from . import compact, mae_small, spt_lsa, ssl_small
from .base import Pretraining, Recipe

_MUON: dict[str, Any] = dict(
    published=None, batch_size=512, opt='nmuon', momentum=0.95, lr=6e-3, weight_decay=3e-2, decay_all=False,
    schedule='linear', warmup_epochs=5, warmup_lr=0., min_lr=0., cooldown_epochs=0)


def _ours(theirs: Recipe, epochs: int, about: str, **changes: Any) -> Recipe:
    """Return the recipe with the plain tag: `cct_7_3x1.c10` for the authors' `cct_7_3x1.c10_300e`."""
    name = f'{theirs.model}.{theirs.dataset}'
    return replace(theirs, **{**_MUON, **dict(
        name=name, epochs=epochs, mix_off_epoch=theirs.mix_off_epoch * epochs // theirs.epochs,
        about=f'Ours, for a GPU: {about}. The authors\' is {theirs.name}.'), **changes})


_FROM: dict[str, Recipe] = {recipe.name: recipe for module in (compact, spt_lsa, ssl_small, mae_small)
                            for recipe in module.RECIPES}
_CCT = 'augmentation and mixing of the authors\' 300 epochs, with Muon and no attention dropout, in 200 epochs'
_NO_DROPOUT = {'model_args': {'attn_drop_rate': 0.}}

CCT_7_3X1_C10 = _ours(_FROM['cct_7_3x1.c10_300e'], 200, _CCT, **_NO_DROPOUT)
CCT_7_3X1_C100 = _ours(_FROM['cct_7_3x1.c100_300e'], 200, _CCT, **_NO_DROPOUT)
CCT_6_3X1_C10 = replace(
    CCT_7_3X1_C10, name='cct_6_3x1.c10',
    about='Ours, for a GPU: the settings of cct_7_3x1.c10. The authors\' are in cct_6_3x1.c10_200e.')

SPT_LSA = [_ours(_FROM[f'{model}.c10_300e'], 150, 'augmentation and mixing of the authors, with Muon, in half of their '
                                                  'epochs')
           for model in ('sl_vit', 'sl_pit', 'sl_swin', 'sl_cait')]

MAE_C10 = replace(
    mae_small.MAE_C10, name='mae_vit_c10.c10_mae_800e', epochs=800, warmup_epochs=40,
    about='Ours, for a GPU: a fifth of the epochs of mae_vit_c10.c10_mae.')
MAE_VIT_C10 = _ours(
    _FROM['mae_vit_c10.c10_100e'], 100, 'from 800 instead of 4000 epochs of MAE on the same images, with Muon',
    from_weights=MAE_C10.name, lr=3e-3)

SELF_DISTILL_C10 = replace(
    ssl_small.PRETRAININGS[0], name='ssl_vit.c10_selfdistill_100e', epochs=100, warmup_epochs=15,
    about='Ours, for a GPU: half of the epochs of ssl_vit.c10_selfdistill.',
    method_args={'temperature_warmup': 0.1, 'freeze_last': 0.01})
SSL_VIT_C10 = _ours(
    _FROM['ssl_vit.c10_300e'], 100, 'from 100 instead of 200 epochs of self-distillation, with Muon',
    from_weights=SELF_DISTILL_C10.name)

CCT_7_3X1_C10_94 = replace(
    CCT_7_3X1_C10, name='cct_7_3x1.c10_94',
    about='Ours, for a GPU: 94 % in the least time, with growing images, without mixing. `tools/benchmark.py record` '
          'measures the time.',
    epochs=30, warmup_epochs=2, sizes=(24, 28, 32), auto_augment='cifar10', crop_scale=None, crop_padding=4, mixup=0.,
    cutmix=0., mix_off_epoch=0, model_args={'attn_drop_rate': 0., 'drop_path_rate': 0.})

RECIPES = [CCT_7_3X1_C10, CCT_7_3X1_C100, CCT_6_3X1_C10, *SPT_LSA, MAE_VIT_C10, SSL_VIT_C10, CCT_7_3X1_C10_94]
PRETRAININGS: list[Pretraining] = [MAE_C10, SELF_DISTILL_C10]
