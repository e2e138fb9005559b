"""`python -m tinyvit_zoo` is `tinyvit-zoo`; in several processes: `torchrun --nproc-per-node N -m tinyvit_zoo ...`."""
import os
import sys

from .cli.main import main


def launch(argv: list[str] | None = None) -> int:
    """Run a command; under torchrun, which then reports the error of the process that failed first."""
    if 'TORCHELASTIC_RUN_ID' not in os.environ:
        return main(argv)
    from torch.distributed.elastic.multiprocessing.errors import record
    return record(main)(argv) or 0


if __name__ == '__main__':
    sys.exit(launch())
