"""Ways to pre-train the encoders: one file a method, its modules and its loss. No loop and no files."""
from .mae_lite import MaskedAutoencoder, random_keep
from .moco_v3 import MoCoV3
from .self_distill import SelfDistillation

__all__ = ['MaskedAutoencoder', 'MoCoV3', 'SelfDistillation', 'random_keep']
