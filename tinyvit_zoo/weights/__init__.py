"""The catalogue of weights, and reading weight files safely."""
from .catalogue import OURS, Weight, catalogue, pretrained_cfgs, promised_sha256, weight_of
from .files import check_sha256, read_cfg, read_weights, save_weights, unwrap

__all__ = [
    'OURS', 'Weight', 'catalogue', 'check_sha256', 'pretrained_cfgs', 'promised_sha256', 'read_cfg',
    'read_weights', 'save_weights', 'unwrap', 'weight_of',
]
