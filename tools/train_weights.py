#!/usr/bin/env python3
"""`tinyvit-zoo train`, for `torchrun --nproc-per-node N tools/train_weights.py RECIPE ...`."""
import sys

from torch.distributed.elastic.multiprocessing.errors import record

from tinyvit_zoo.cli.main import main

if __name__ == '__main__':
    sys.exit(record(main)(['train', *sys.argv[1:]]))
