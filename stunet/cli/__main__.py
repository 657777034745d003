"""`python -m stunet.cli`, where the `stunet` command is not on the path."""

import sys

from stunet.cli import main

if __name__ == "__main__":
    sys.exit(main())
