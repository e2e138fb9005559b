"""Checkpoints that survive a kill at any instant: written beside and renamed, checksummed, two kept."""
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import ZooError
from ..runtime.files import write_whole

_DIGEST_BYTES = 32
_KEPT = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `checkpoint-STEP.pt`: a SHA-256 of the rest, then torch's format. All but the last two are removed."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_whole(folder / f'checkpoint-{step:08d}.pt', hashlib.sha256(content).digest() + content)
    for old in checkpoints(folder)[:-_KEPT]:
        old.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """List them, oldest first."""
    return sorted(folder.glob('checkpoint-*.pt'))


def load_checkpoint(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Read the newest sound checkpoint; None where there is none at all. A damaged one is named and passed over."""
    paths = checkpoints(folder)
    for path in reversed(paths):
        content = path.read_bytes()
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() == digest:
            return torch.load(io.BytesIO(body), map_location='cpu', weights_only=True)
        say(f'{path} is damaged: the one before it is used.')
    if paths:
        raise ZooError(f'No checkpoint in {folder} is sound ({len(paths)} damaged): remove them to begin anew.')
    return None
