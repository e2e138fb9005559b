#!/usr/bin/env python3
"""Write tinyvit_zoo/SHA256SUMS, the digests of the package's data files, after a change; `sha256sum -c` reads it.

It imports nothing of the package, which reads these files as it is imported.
"""
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / 'tinyvit_zoo'


def sums(package: Path) -> str:
    patterns = 'data/*.json', 'weights/*.json', 'weights/*.jsonl', 'publish/page/*.*', 'publish/page/examples/*.png'
    paths = [path for pattern in patterns for path in package.glob(pattern)]
    return ''.join(f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(package).as_posix()}\n'
                   for path in sorted(paths))


if __name__ == '__main__':
    (PACKAGE / 'SHA256SUMS').write_text(sums(PACKAGE), encoding='utf-8')
