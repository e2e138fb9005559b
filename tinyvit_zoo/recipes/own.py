"""Pre-training on one's own images, by method: for some thousand to some hundred thousand of them. Ours, all chosen."""
from dataclasses import replace

from .base import Pretraining

_MAE = Pretraining(
    name='', method='mae_small',
    about='Ours, for small sets: masked patches, positions learned, the visible ones counted a little.',
    epochs=200, batch_size=256, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, warmup_epochs=10,
    crop_scale=(0.6, 1.), crop_interpolation='bicubic')

OWN = {recipe.method: recipe for recipe in (
    _MAE,
    replace(_MAE, method='mae_lite', about='Ours, for small sets: masked patches, fixed positions.'),
    replace(_MAE, method='d_mae', about='Ours, for small sets: masked patches, and the attention of a larger model.'),
)}
