"""A small convolutional network (arXiv 2404.00498): the baseline at the same cost, or a teacher."""
from dataclasses import replace

from .base import Recipe

FAST_CNN_HALF_C10 = Recipe(
    name='fast_cnn_half.c10', dataset='c10',
    about='Ours, with Muon instead of SGD: a small convolutional network for CIFAR-10, in minutes on a CPU.',
    epochs=16, batch_size=256, opt='nmuon', momentum=0.95, lr=3e-3, weight_decay=3e-2, schedule='linear',
    warmup_epochs=1, smoothing=0.1, crop_padding=2, whiten=True)

FAST_CNN_HALF_C100 = replace(
    FAST_CNN_HALF_C10, name='fast_cnn_half.c100', dataset='c100',
    about='Ours: the recipe of fast_cnn_half.c10 for CIFAR-100.')

RECIPES = [FAST_CNN_HALF_C10, FAST_CNN_HALF_C100]
