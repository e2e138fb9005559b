#!/usr/bin/env python3
"""`tinyvit-zoo export`: a model as ONNX or as a program of torch.export."""
import sys

from tinyvit_zoo.cli.main import main

if __name__ == '__main__':
    sys.exit(main(['export', *sys.argv[1:]]))
