"""The command line as a module: python -m jaxdist."""

import sys

from jaxdist.cli import main

if __name__ == "__main__":
    sys.exit(main())
