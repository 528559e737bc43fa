"""`python -m hebbline` is the `hebbline` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
