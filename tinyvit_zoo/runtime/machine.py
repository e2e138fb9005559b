"""Name the machine and the versions that figures depend on."""
import platform
from pathlib import Path

import torch

from ..version import __version__


def machine() -> dict[str, str]:
    """Return versions and hardware, to explain why figures differ."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ''
    import timm
    return {'tinyvit_zoo': __version__, 'torch': torch.__version__, 'timm': timm.__version__,
            'python': platform.python_version(), 'system': platform.platform(), 'threads': str(torch.get_num_threads()),
            'device': gpu or cpu_name()}


def cpu_name() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
