#!/usr/bin/env python3
"""`tinyvit-zoo count`, from a clone."""
import sys

from tinyvit_zoo.__main__ import launch

if __name__ == '__main__':
    sys.exit(launch(['count', *sys.argv[1:]]))
