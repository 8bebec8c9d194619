"""Run the series: see :mod:`helpers.headless.runner`."""

import sys

from helpers.headless.runner import main

if __name__ == "__main__":
    sys.exit(main())
