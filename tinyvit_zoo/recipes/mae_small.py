"""MAE-ViT (arXiv 2402.03752). Published: the images' treatment and the fine-tuned figures; the rest is chosen."""
from dataclasses import replace

from .base import Pretraining, Recipe

MAE_VIT_C10 = Recipe(
    name='mae_vit_c10.c10_100e', dataset='c10', published=96.41, from_weights='mae_vit_c10.c10_mae',
    about='From an MAE pre-training on the same images, enlarged to 36 px. Optimizer, its settings, mixing and drop '
          'path are our choice.',
    img_size=36, epochs=100, batch_size=256, lr=1e-3, weight_decay=0.05, layer_decay=0.75, warmup_epochs=5, min_lr=1e-6,
    crop_scale=(0.8, 1.), crop_interpolation='bicubic', auto_augment='cifar10', mixup=0.8, cutmix=1., smoothing=0.1,
    model_args={'drop_path_rate': 0.1})
MAE_VIT_C100 = replace(
    MAE_VIT_C10, name='mae_vit_c100.c100', dataset='c100', published=78.27, from_weights='mae_vit_c100.c100_mae',
    about='As on CIFAR-10, with erasing and more drop path: the paper used more regularization on CIFAR-100; which '
          'kind is our choice.',
    erase=0.25, model_args={'drop_path_rate': 0.2})

MAE_C10 = Pretraining(
    name='mae_vit_c10.c10_mae', dataset='c10', method='mae_small',
    about='MAE on the training images of CIFAR-10, enlarged to 36 px, three quarters masked. Optimizer, epochs and '
          'augmentation are from a third party\'s copy of the recipe (which normalizes by .5). alpha and the decoder '
          'are our choice.',
    img_size=36, epochs=4000, batch_size=1024, lr=6e-4, betas=(0.9, 0.95), weight_decay=0.05, warmup_epochs=400,
    crop_scale=(0.6, 1.), crop_interpolation='bicubic')
MAE_C100 = replace(MAE_C10, name='mae_vit_c100.c100_mae', dataset='c100', about='As on CIFAR-10, on CIFAR-100.')

RECIPES = [MAE_VIT_C10, MAE_VIT_C100]
PRETRAININGS = [MAE_C10, MAE_C100]
