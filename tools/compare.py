#!/usr/bin/env python3
"""`tinyvit-zoo compare`: models side by side."""
import sys

from tinyvit_zoo.cli.main import main

if __name__ == '__main__':
    sys.exit(main(['compare', *sys.argv[1:]]))
