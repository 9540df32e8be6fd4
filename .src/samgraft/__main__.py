"""``python -m samgraft``: the same as the ``samgraft`` command."""

import sys

from samgraft.recipes.cli import main

if __name__ == "__main__":
    sys.exit(main())
