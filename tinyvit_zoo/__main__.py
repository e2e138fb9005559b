"""`python -m tinyvit_zoo` is `tinyvit-zoo`."""
import sys

from .cli.main import main

if __name__ == '__main__':
    sys.exit(main())
