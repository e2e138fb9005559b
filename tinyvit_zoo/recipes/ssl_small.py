"""Fine-tuning after self-distillation on low-resolution views (arXiv 2210.07240), much as the SPT/LSA recipes."""
from dataclasses import replace

from .base import Recipe
from .spt_lsa import BASE, DATASETS

_DATASETS = {**DATASETS, 'cinic10': DATASETS['c10']}
_TOP1 = {  # CIFAR-10, CIFAR-100, SVHN, Tiny-ImageNet, CINIC-10
    'ssl_vit': (96.41, 79.15, 98.03, 63.36, 86.91),
    'ssl_swin': (96.18, 80.95, 98.01, 65.13, 87.84),
    'ssl_cait': (96.42, 80.79, 98.18, 67.46, 88.27),
}


def _recipe(model: str, dataset: str, published: float) -> Recipe:
    architecture = f'{model}_64' if dataset == 'timnet' else model
    return replace(
        BASE, name=f'{architecture}.{dataset}', dataset=dataset, published=published, batch_size=256,
        from_weights=f'{architecture}.{dataset}_selfdistill', decay_all=False,
        about='From the teacher of a self-distillation on the same images. Weight decay as our models have it, not on '
              'everything: chosen. Not run by us yet.',
        **_DATASETS[dataset])


RECIPES = [
    _recipe(model, dataset, top1)
    for model, figures in _TOP1.items() for dataset, top1 in zip(_DATASETS, figures, strict=True)
]
