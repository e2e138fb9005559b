"""Checkpoints that survive a kill at any instant: written beside and renamed, checksummed, two kept."""
from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import ZooError

_DIGEST_BYTES = 32
_KEPT = 2


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever happens meanwhile."""
    partial = path.with_name(f'.{path.name}.partial')
    try:
        with open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise ZooError(f'{path} could not be written ({e.strerror}): make room, or choose another place. A training '
                       f'then goes on with --resume.') from e


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """`checkpoint-STEP.pt`: a SHA-256 of what follows, then torch's own format. Older ones than the last two go."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_whole(folder / f'checkpoint-{step:08d}.pt', hashlib.sha256(content).digest() + content)
    for old in checkpoints(folder)[:-_KEPT]:
        old.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob('checkpoint-*.pt'))


def load_checkpoint(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint that is sound; None where there is none at all. A damaged one is named and passed over."""
    found = checkpoints(folder)
    for path in reversed(found):
        state = _read(path)
        if state is not None:
            return state
        say(f'{path} is damaged: the one before it is used.')
    if found:
        raise ZooError(f'No checkpoint in {folder} is sound ({len(found)} damaged): remove them to begin anew.')
    return None


def _read(path: Path) -> dict[str, Any] | None:
    content = path.read_bytes()
    digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    return torch.load(io.BytesIO(body), map_location='cpu', weights_only=True)
