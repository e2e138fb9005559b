"""Self-distillation on low-resolution views, and the fine-tuning after it (arXiv 2210.07240).

The pre-training's learning rate is 1e-4 for 256 images, at 256 on each of two GPUs. The teacher's temperature rises
over ten epochs; the last layer is frozen for one. The fine-tuning is close to the SPT/LSA recipes.
"""
from dataclasses import replace
from typing import Any

from .base import Pretraining, Recipe
from .spt_lsa import BASE, SETTINGS, architecture, tag

_SETTINGS = {**SETTINGS, 'cinic10': SETTINGS['c10']}
_TOP1 = {  # CIFAR-10, CIFAR-100, SVHN, Tiny-ImageNet, CINIC-10
    'ssl_vit': (96.41, 79.15, 98.03, 63.36, 86.91),
    'ssl_swin': (96.18, 80.95, 98.01, 65.13, 87.84),
    'ssl_cait': (96.42, 80.79, 98.18, 67.46, 88.27),
}


def _recipe(model: str, dataset: str, published: float) -> Recipe:
    name = architecture(model, dataset)
    return replace(
        BASE, name=f'{name}.{tag(name, dataset)}', dataset=dataset, published=published, batch_size=256,
        from_weights=f'{name}.{dataset}_selfdistill', decay_all=False,
        about='From the teacher of a self-distillation on the same images. Weight decay follows our models, not all '
              'parameters: our choice.',
        **_SETTINGS[dataset])


_EPOCHS = 200
_SELF_DISTILL = Pretraining(
    name='', about='', method='self_distill', epochs=_EPOCHS, batch_size=512, lr=2e-4, weight_decay=0.04,
    weight_decay_end=0.4, warmup_epochs=30, min_lr=1e-6, clip=3., clip_mode='tensor', crop_scale=(0.7, 1.),
    crop_interpolation='bicubic',
    method_args={'temperature_warmup': 10 / _EPOCHS, 'freeze_last': 1 / _EPOCHS})
_SMALLER_PARTS: dict[str, Any] = dict(
    crop_scale=(0.5, 1.), method_args={**_SELF_DISTILL.method_args, 'local_scale': (0.2, 0.4)})


def _pretraining(model: str, dataset: str) -> Pretraining:
    ours = {key: value for key, value in _SETTINGS[dataset].items() if key != 'auto_augment'}
    crops = ' Crops as on CIFAR: our choice.' if dataset in ('svhn', 'cinic10') else ''
    return replace(
        _SELF_DISTILL, name=f'{architecture(model, dataset)}.{dataset}_selfdistill', dataset=dataset,
        about=f'The authors\' pre-training on the training images.{crops}',
        **{**(_SMALLER_PARTS if dataset == 'timnet' else {}), **ours})


RECIPES = [_recipe(model, dataset, top1) for model, figures in _TOP1.items()
           for dataset, top1 in zip(_SETTINGS, figures, strict=True)]
PRETRAININGS = [_pretraining(model, dataset) for model in _TOP1 for dataset in _SETTINGS]
