#!/usr/bin/env python3
"""`tinyvit-zoo eval`: the accuracy of weights, and what their features are worth."""
import sys

from tinyvit_zoo.cli.main import main

if __name__ == '__main__':
    sys.exit(main(['eval', *sys.argv[1:]]))
