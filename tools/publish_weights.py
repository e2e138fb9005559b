#!/usr/bin/env python3
"""`tinyvit-zoo publish`: put weights of ours on the Hugging Face Hub."""
import sys

from tinyvit_zoo.cli.main import main

if __name__ == '__main__':
    sys.exit(main(['publish', *sys.argv[1:]]))
