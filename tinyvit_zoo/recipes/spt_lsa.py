"""The recipes of shifted patches and locality attention (arXiv 2112.13492), for every family, plain and SL.

The authors' 100 epochs have three-fold repeated augmentation, three passes each: 300 epochs here, with a warm-up of 30.
Weight decay acts on all parameters, also temperatures and tables, as in the authors' code (`decay_all=True`).
"""
from dataclasses import replace
from typing import Any

from .base import Recipe

BASE = Recipe(
    name='', about='', epochs=300, batch_size=128, lr=1e-3, weight_decay=0.05, decay_all=True, warmup_epochs=30,
    warmup_lr=1e-6, min_lr=1e-6, crop_padding=4, erase=0.25, erase_mode='const', erase_area=(0.02, 0.4),
    mixup=1., cutmix=1., mix_prob=0.5, smoothing=0.1)

SETTINGS: dict[str, dict[str, Any]] = {  # that differ by dataset; street numbers are not mirrored
    'c10': dict(auto_augment='cifar10'),
    'c100': dict(auto_augment='cifar10', mean=(0.5070, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    'svhn': dict(auto_augment='svhn', flip=0.), 'timnet': dict(auto_augment='imagenet', img_size=64),
}
_TOP1 = {  # CIFAR-10, CIFAR-100, SVHN, Tiny-ImageNet
    'plain_vit': (93.58, 73.81, 97.82, 57.07), 'sl_vit': (94.53, 76.92, 97.79, 61.07),
    'plain_t2t': (95.30, 77.00, 97.90, 60.57), 'sl_t2t': (95.57, 77.36, 97.91, 61.83),
    'plain_cait': (94.91, 76.89, 98.13, 64.37), 'sl_cait': (95.81, 80.32, 98.28, 67.18),
    'plain_pit': (94.24, 74.99, 97.83, 60.25), 'sl_pit': (95.88, 79.00, 97.93, 62.91),
    'plain_swin': (94.46, 76.87, 97.72, 60.87), 'sl_swin': (95.93, 79.99, 97.92, 64.95),
}

_OURS = ('sl_vit.c10', 'sl_pit.c10', 'sl_swin.c10', 'sl_cait.c10', 'ssl_vit.c10')    # .gpu has them


def architecture(model: str, dataset: str) -> str:
    return f'{model}_64' if dataset == 'timnet' else model


def tag(name: str, dataset: str) -> str:
    """Return the tag of the authors' recipe: where we have one of our own, with its epochs."""
    return f'{dataset}_300e' if f'{name}.{dataset}' in _OURS else dataset


def _recipe(model: str, dataset: str, published: float) -> Recipe:
    name, vit = architecture(model, dataset), model.endswith('_vit')
    about = ('The authors\' recipe' + (', at the learning rate of the paper, three times that of their script' * vit)
             + '. Erased pixels take the mean colour.')
    return replace(
        BASE, name=f'{name}.{tag(name, dataset)}', dataset=dataset, published=published, about=about,
        lr=3e-3 if vit else 1e-3, **SETTINGS[dataset])


RECIPES = [_recipe(model, dataset, top1) for model, figures in _TOP1.items()
           for dataset, top1 in zip(SETTINGS, figures, strict=True)]
