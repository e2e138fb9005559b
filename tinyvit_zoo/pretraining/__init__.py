"""Ways to pre-train the encoders: one file a method, its modules and its loss. No loop and no files."""
from .mae_lite import MaskedAutoencoder, random_keep

__all__ = ['MaskedAutoencoder', 'random_keep']
