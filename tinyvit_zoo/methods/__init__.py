"""Ways to train: one file a method, its modules, its views and its loss. No loop and no files."""
# ruff: noqa: F401
from ..recipes import BaseRecipe, Pretraining, Recipe
from .mae_lite import DistilledAutoencoder, MaskedAutoencoder
from .mae_small import SmallMaskedAutoencoder
from .masked import MaskedModel, join_patches, random_keep
from .method import Method, Task
from .moco_v3 import MoCoV3
from .self_distill import SelfDistillation
from .self_supervised import METHODS, SelfSupervised
from .supervised import Supervised

TASKS: dict[type[BaseRecipe], type[Task]] = {Recipe: Supervised, Pretraining: SelfSupervised}
METHODS.update({
    'mae_small': SmallMaskedAutoencoder, 'mae_lite': MaskedAutoencoder, 'd_mae': DistilledAutoencoder,
    'moco_v3': MoCoV3, 'self_distill': SelfDistillation,
})
