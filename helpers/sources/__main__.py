"""``python -m helpers.sources PROFILE``, which is what ``make model`` calls: fetch the base model before the first run."""

import sys

from helpers.settings import settings_for
from helpers.sources import ModelError, resolve

if __name__ == "__main__":
    try:
        print(resolve(settings_for(sys.argv[1])).folder)
    except (ModelError, ValueError) as problem:
        sys.exit(f"error: {problem}")
