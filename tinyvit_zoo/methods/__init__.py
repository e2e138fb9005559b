"""Ways to pre-train the encoders: one file a method, its modules and its loss. No loop and no files."""
from .mae_lite import DistilledAutoencoder, MaskedAutoencoder
from .mae_small import SmallMaskedAutoencoder
from .masked import MaskedModel, join_patches, random_keep
from .method import Method
from .moco_v3 import MoCoV3
from .self_distill import SelfDistillation

__all__ = [
    'METHODS', 'DistilledAutoencoder', 'MaskedAutoencoder', 'MaskedModel', 'Method', 'MoCoV3', 'SelfDistillation',
    'SmallMaskedAutoencoder', 'join_patches', 'random_keep',
]

METHODS: dict[str, type[Method]] = {
    'mae_small': SmallMaskedAutoencoder, 'mae_lite': MaskedAutoencoder, 'd_mae': DistilledAutoencoder,
    'moco_v3': MoCoV3, 'self_distill': SelfDistillation,
}
