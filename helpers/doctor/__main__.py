"""``python -m helpers.doctor``: the findings on a terminal; the exit code is 1 if there is a problem."""

import os
import sys

from helpers.doctor import examine, look
from helpers.doctor.finding import print_report

if __name__ == "__main__":
    report = examine(look())
    print_report(report)
    sys.stdout.flush()
    os._exit(report.worst == "problem")  # without waiting for what hangs in the driver
