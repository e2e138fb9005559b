"""Pre-training on one's own images, by method: for some thousand to some hundred thousand of them. Ours, all chosen."""
from dataclasses import replace

from .base import Pretraining

_MAE = Pretraining(
    name='', method='mae_small',
    about='Ours, for small sets: masked patches, positions learned, the visible ones counted a little.',
    epochs=200, batch_size=256, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, warmup_epochs=10,
    crop_scale=(0.6, 1.), crop_interpolation='bicubic', model_args={'attn_drop_rate': 0., 'drop_path_rate': 0.})

_SELF_DISTILL = Pretraining(
    name='', method='self_distill',
    about='Ours, for small sets: the teacher\'s words on two views are what the student learns to say of all. The '
          'paper\'s settings, but for the batch.',
    epochs=200, batch_size=256, lr=5e-4, weight_decay=0.04, weight_decay_end=0.4, warmup_epochs=10, min_lr=1e-6,
    clip=3., clip_mode='tensor', crop_scale=(0.5, 1.), crop_interpolation='bicubic')

OWN = {recipe.method: recipe for recipe in (
    _MAE,
    replace(_MAE, method='mae_lite', about='Ours, for small sets: masked patches, fixed positions.'),
    replace(_MAE, method='d_mae', about='Ours, for small sets: masked patches, and the attention of a larger model.'),
    _SELF_DISTILL,
    replace(_SELF_DISTILL, method='moco_v3', about='Ours, for small sets: two views of an image, told from those of '
                                                   'all others in the batch.',
            weight_decay=0.1, weight_decay_end=None, clip=0., crop_scale=(0.2, 1.), method_args={'hidden_dim': 1024}),
)}
