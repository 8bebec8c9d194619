"""What the fine-tuning notebooks share: settings, data, models, training, evaluation, records, figures.

Import it first: it keeps three notices of the libraries out of the notebooks, none of which concerns your work. In a
notebook it also makes tables and figures easier to read.
"""

import contextlib
import logging
import sys
import warnings

# tqdm: these notebooks use its plain bars, so ipywidgets is not needed
warnings.filterwarnings("ignore", message="IProgress not found")
# transformers: two of its own names will change in its next major version; the constraints pin this one
warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing.*")
# bitsandbytes: an optional CPU kernel for 4-bit inference is not installed; no lesson uses it
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet():
    """Keep the progress bars and advice of the libraries out of a notebook; errors still show."""
    from datasets.utils import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
        enable_progress_bars()


if "ipykernel" in sys.modules:
    from helpers.headless import tables

    tables.switch_on()
