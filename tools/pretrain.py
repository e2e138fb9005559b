#!/usr/bin/env python3
"""`tinyvit-zoo pretrain`, for `torchrun --nproc-per-node N tools/pretrain.py METHOD ...`."""
import sys

from torch.distributed.elastic.multiprocessing.errors import record

from tinyvit_zoo.cli.main import main

if __name__ == '__main__':
    sys.exit(record(main)(['pretrain', *sys.argv[1:]]))
