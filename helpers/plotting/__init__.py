"""Figures from records and counts, and what people and models wrote as HTML. Nothing here writes a file."""

from helpers.plotting.figures import (
    COLOURS,
    DASHES,
    bars,
    growth,
    lora_sketch,
    loss_curves,
    memory_parts,
    memory_timeline,
    rungs,
    scores,
    sweep,
    update_energy,
)
from helpers.plotting.tokens import TOKENS, length_histogram, passed, texts, token_heat, token_strip
