"""What the fine-tuning notebooks share: settings, data, models, training, evaluation, records, figures.

Import it first: it keeps some notices of the libraries out of the notebooks, none of which concerns your work. In a
notebook it also makes tables and figures easier to read.
"""

import logging
import sys
import warnings

# tqdm: these notebooks use its plain bars, so ipywidgets is not needed
warnings.filterwarnings("ignore", message="IProgress not found")
# transformers: two of its own names will change in its next major version; the constraints pin this one
warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing.*")
# peft: the layers of GPT-2 hold their weights the other way round, which it finds out and handles by itself
warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
# bitsandbytes: an optional CPU kernel for 4-bit inference is not installed; no lesson uses it
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


if "ipykernel" in sys.modules:  # a notebook: an add-on that nothing here depends on
    from helpers.headless import switch_on

    switch_on()
