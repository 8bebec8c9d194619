"""``make lab PROFILE=tiny``: the profile is written into the parameters cell of each notebook, where you can see it."""

from __future__ import annotations

import argparse
import re
import sys

from helpers.headless.parameters import UsageError, find_notebooks
from helpers.records import write_atomically
from helpers.settings import PROFILES, nearest

_LINE = re.compile(r'("profile = \\")[\w-]+(?=\\")')  # as a notebook file spells it


def choose_profile(profile: str) -> list[str]:
    """Let each notebook of the series begin with this profile.

    Returns:
        The names of the notebooks that were changed.

    Raises:
        UsageError: if there is no such profile.
    """
    if profile not in PROFILES:
        raise UsageError(f"there is no profile {profile!r}; {nearest(profile, PROFILES)}")
    changed = []
    for notebook in find_notebooks():
        text = notebook.read_text(encoding="utf-8")
        new = _LINE.sub(rf"\g<1>{profile}", text, count=1)
        if new != text:
            write_atomically(notebook, new)
            changed.append(notebook.stem)
    return changed


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make lab", description=__doc__)
    parser.add_argument("--profile", required=True)
    profile = parser.parse_args().profile
    try:
        changed = choose_profile(profile)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if changed:
        print(f'The parameters cells of {len(changed)} notebooks now say profile = "{profile}".')
    return 0


if __name__ == "__main__":
    sys.exit(main())
