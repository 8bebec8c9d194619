"""What the fine-tuning notebooks share: settings, data, models, training, evaluation, records, figures, runner.

Importing it first keeps three notices of the libraries out of the notebooks; none is about the reader's work. In a
notebook it also lays out tables for reading.
"""

import logging
import sys
import warnings

from helpers.headless import tables

# tqdm: no ipywidgets, so plain bars, which is what these notebooks use
warnings.filterwarnings("ignore", message="IProgress not found")
# transformers: two of its own names will change in its next major version; the constraints pin this one
warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing.*")
# bitsandbytes: an optional CPU kernel for 4-bit inference is not installed; no lesson uses it
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

if "ipykernel" in sys.modules:
    tables.switch_on()
