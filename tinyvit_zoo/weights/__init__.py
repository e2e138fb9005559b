"""The catalogue of weights, and reading weight files safely."""
# ruff: noqa: F401
from .catalogue import OURS, Weight, catalogue, pretrained_cfgs, promised_sha256, weight_of
from .files import check_sha256, read_cfg, read_weights, save_weights, unwrap
