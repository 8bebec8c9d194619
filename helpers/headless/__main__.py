"""The command line: ``python -m helpers.headless``, which is what ``make run-all`` calls."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress

from helpers.engine.locks import in_use
from helpers.headless.masking import mask_secrets
from helpers.headless.parameters import UsageError
from helpers.headless.runner import run_all
from helpers.records import RecordError
from helpers.settings import PROFILES, ROOT, shown

EXIT = {"ok": 0, "failed": 1, "timed out": 124, "interrupted": 130, "killed": 137}
_EXIT_CODES = """exit codes:
  0    all notebooks passed
  1    a notebook failed
  2    wrong arguments, or a folder that is in use or cannot be written
  124  a notebook or a cell ran longer than its limit
  130  interrupted (SIGINT, SIGTERM or SIGHUP)
  137  the kernel was killed, mostly for lack of main memory"""


def main(arguments: list[str] | None = None) -> int:
    """Run the notebooks, or look whether a run is on; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.headless", description="Run the notebooks without a browser, as `make run-all` does.",
        epilog=_EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    option = parser.add_argument
    option("--profile", default="small", help=f"one of {', '.join(PROFILES)}; default: small")
    option("--notebooks", default="", help="numbers or names, such as '00 01 02'; default: all")
    option("--params", default="", help="for the notebooks, such as 'max_steps=5 seed=1'", dest="parameters")
    option("--runs-dir", default="runs", help="where results go, relative to the repository; default: runs")
    option("--cell-timeout", type=float, default=3600, help="seconds for one cell; default: 3600")
    option("--notebook-timeout", type=float, default=7200, help="seconds for one notebook; default: 7200")
    option("--fresh", action="store_true", help="run notebooks also if nothing changed since they passed")
    option("--in-use", metavar="FOLDER", help="run nothing: exit with 2 if a run is using this folder or one below it")
    given = vars(parser.parse_args(arguments))
    with suppress(AttributeError):  # it is closed
        sys.stdout.reconfigure(errors="backslashreplace")
    folder = given.pop("in_use")
    try:
        if folder is None:
            return EXIT[run_all(**given)]
        if not (held := in_use(ROOT / folder)):
            return 0
        message = f"a run is using {shown(held[0])}: wait for it, or stop it"
    except (UsageError, RecordError) as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'writing'}: {error.strerror}"
    except KeyboardInterrupt:  # before the first notebook or after the last
        return EXIT["interrupted"]
    with suppress(OSError):
        print(f"error: {mask_secrets(message)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
