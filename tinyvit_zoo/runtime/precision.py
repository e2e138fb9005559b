"""Choose the precision of a computation: float32, or autocast to bfloat16 or float16."""
import contextlib

import torch

from ..errors import ZooError

_FORMATS = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Return the type for autocast, None for plain float32. 'auto' is bf16 if the device has units for it."""
    if name == 'auto':
        if device.type == 'cuda':
            has_units = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            has_units = device.type == 'cpu' and (
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        return torch.bfloat16 if has_units else None
    if name not in _FORMATS:
        raise ZooError(f'precision is {name!r}, expected auto, {", ".join(_FORMATS)}.')
    if name == 'fp16' and device.type == 'cpu':
        raise ZooError('precision fp16 is a thousand times slower on a CPU: take bf16, fp32 or auto.')
    return _FORMATS[name]


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[None]:
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if device.type == 'meta' else torch.autocast(device.type, enabled=False)
