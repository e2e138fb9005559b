#!/usr/bin/env python3
"""`tinyvit-zoo analyze`, for a checkout: tools/analyze.py KIND MODEL ..."""
import sys

from tinyvit_zoo.cli.main import main

if __name__ == '__main__':
    sys.exit(main(['analyze', *sys.argv[1:]]))
