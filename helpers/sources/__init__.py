"""Where base models and rows come from: made here, bundled, your own files, or the hub."""

from helpers.sources.adapters import check_adapter, check_loaded
from helpers.sources.answers import answer_of
from helpers.sources.base_models import SMOLLM2_HUB_ID, Base, models_folder, resolve
from helpers.sources.conversations import read_conversations
from helpers.sources.hub import explain
from helpers.sources.manifest import (
    MANIFEST,
    ModelError,
    check_files,
    check_replaceable,
    quiet,
    reading,
    write_manifest,
)
from helpers.sources.questions import make_splits, practice_questions
from helpers.sources.rows import DataError
from helpers.sources.templates import LLAMA2_TEMPLATE
