"""Fine-tuning on one's own images: for some hundreds to some ten thousand of them. Ours, all of it chosen."""
from .base import Recipe

FINETUNE = Recipe(
    name='', about='Ours, for small sets: pretrained weights, a low learning rate that is lower still for the lower '
                   'layers, moderate augmentation.',
    epochs=50, batch_size=64, lr=5e-4, weight_decay=0.05, layer_decay=0.75, warmup_epochs=5, smoothing=0.1,
    crop_scale=(0.6, 1.), crop_interpolation='random', auto_augment='rand-m7-mstd0.5-inc1', mixup=0.2, cutmix=0.5,
    mix_prob=0.5, erase=0.1)
