"""The catalogue of weights, and reading weight files safely."""
from .catalogue import Weight, catalogue, pretrained_cfgs
from .files import check_sha256, read_cfg, read_weights, save_weights, unwrap

__all__ = [
    'Weight', 'catalogue', 'check_sha256', 'pretrained_cfgs', 'read_cfg', 'read_weights', 'save_weights',
    'unwrap',
]
