#!/usr/bin/env python3
"""`tinyvit-zoo count`: parameters, multiply-adds, activations and memory of models."""
import sys

from tinyvit_zoo.cli.main import main

if __name__ == '__main__':
    sys.exit(main(['count', *sys.argv[1:]]))
