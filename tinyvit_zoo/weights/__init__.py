"""The catalogue of weights, and reading weight files safely."""
# ruff: noqa: F401
from .catalogue import OURS, Weight, catalogue, pretrained_cfgs, weight_of
from .fetch import hub_config, url_cache, weight_file
from .files import (
    check_agreement,
    check_cfg,
    check_config,
    convert,
    read_cfg,
    read_weights,
    save_weights,
    seal_config,
    unwrap,
)
