"""Fine-tuning of MAE-ViT (arXiv 2402.03752). Published: the images' treatment and the figures; the rest is chosen."""
from dataclasses import replace

from .base import Recipe

MAE_VIT_C10 = Recipe(
    name='mae_vit_c10.c10', dataset='c10', published=96.41, from_weights='mae_vit_c10.c10_mae',
    about='From an MAE pre-training on the same images, enlarged to 36 px. Optimizer, its settings, mixing and drop '
          'path are chosen. Not run by us yet.',
    img_size=36, epochs=100, batch_size=256, lr=1e-3, weight_decay=0.05, layer_decay=0.75, warmup_epochs=5, min_lr=1e-6,
    crop_scale=(0.8, 1.), crop_interpolation='bicubic', auto_augment='cifar10', mixup=0.8, cutmix=1., smoothing=0.1,
    model_args={'drop_path_rate': 0.1})
MAE_VIT_C100 = replace(
    MAE_VIT_C10, name='mae_vit_c100.c100', dataset='c100', published=78.27, from_weights='mae_vit_c100.c100_mae',
    about='As on CIFAR-10, with erasing and more drop path: the paper says that CIFAR-100 needed more regularisation. '
          'Which is chosen. Not run by us yet.',
    erase=0.25, model_args={'drop_path_rate': 0.2})

RECIPES = [MAE_VIT_C10, MAE_VIT_C100]
