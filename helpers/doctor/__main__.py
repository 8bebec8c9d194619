"""``python -m helpers.doctor``: the findings on a terminal; the exit code is 1 if there is a problem."""

import os
import shutil

from helpers.doctor import examine, look

if __name__ == "__main__":
    report = examine(look())
    print(report.text(min(120, shutil.get_terminal_size().columns)), flush=True)
    os._exit(report.worst == "problem")  # without waiting for what hangs in the driver
