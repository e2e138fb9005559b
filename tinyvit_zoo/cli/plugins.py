"""Other packages that add to the zoo. See docs/extending.md."""
from __future__ import annotations

import sys
from importlib.metadata import entry_points

GROUP = 'tinyvit_zoo.plugins'


def load_plugins() -> None:
    """Import the modules of the entry-point group, which add to the tables of the zoo. A broken one is named."""
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as e:  # whatever another package raises: the command may well not need it
            reason = ' '.join(f'{type(e).__name__}: {e}'.split())
            print(f'tinyvit-zoo: the plugin {entry.value} cannot be imported ({reason}): update or uninstall its '
                  f'package.', file=sys.stderr)
