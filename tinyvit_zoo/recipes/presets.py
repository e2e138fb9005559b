"""Fine-tuning on one's own images: for some hundreds to some ten thousand of them. Ours, all of it chosen."""
from dataclasses import replace

from .base import Pretraining, Recipe

FINETUNING_PRESET = Recipe(
    name='', about='Ours, for small data: Muon, layer-wise learning rate decay for pretrained weights, moderate '
                   'augmentation.',
    epochs=50, batch_size=64, opt='nmuon', momentum=0.95, lr=3e-3, weight_decay=0.05, layer_decay=0.75,
    warmup_epochs=5, smoothing=0.1, crop_scale=(0.6, 1.), crop_interpolation='random',
    auto_augment='rand-m7-mstd0.5-inc1', mixup=0.2, cutmix=0.5, mix_prob=0.5, erase=0.1)

# Pre-training: Muon in place of the papers' AdamW, and the linear schedule of our quick classifiers. Measured on a
# fifth of CIFAR-10: see docs/self_supervised.md.
_MAE = Pretraining(
    name='', method='mae_small',
    about='Ours, for small data: masked and, with a small weight, visible patches, each normalized; learned positions.',
    epochs=200, batch_size=128, opt='nmuon', momentum=0.95, lr=3e-3, weight_decay=0.03, schedule='linear',
    warmup_epochs=3, crop_scale=(0.6, 1.), crop_interpolation='bicubic', method_args={'normalize_targets': True},
    model_args={'attn_drop_rate': 0., 'drop_path_rate': 0.})

_JOINT = replace(_MAE, min_lr=1e-6, model_args={}, method_args={})

PRETRAINING_PRESETS = {recipe.method: recipe for recipe in (
    _MAE,
    replace(_MAE, method='mae_lite', method_args={}, about='Ours, for small data: masked patches, fixed positions.'),
    replace(_MAE, method='d_mae', method_args={},
            about='Ours, for small data: masked patches, and the attention of a larger model.'),
    replace(_JOINT, method='self_distill', batch_size=64, crop_scale=(0.3, 1.),
            about='Ours, for small data: the student learns the teacher\'s outputs for two views. For fewer steps, the '
                  'teacher is faster and sharper than in the paper, with fewer, more different views.',
            method_args={'local_views': 2, 'local_scale': (0.1, 0.4), 'num_prototypes': 256, 'momentum': 0.99,
                         'teacher_temperature': (0.025, 0.03), 'temperature_warmup': 0.2, 'freeze_last': 0.}),
    replace(_JOINT, method='moco_v3', crop_scale=(0.2, 1.), method_args={'hidden_dim': 1024},
            about='Ours, for small data: contrasts two views of an image with the others in the batch.'),
)}
