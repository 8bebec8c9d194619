"""What records can say about methods: whether they are comparable, how sure a difference is, and in which words.

Works from records alone: nothing here trains, loads a model or imports torch.
"""

from helpers.comparison.findings import (
    NAMES,
    baselines,
    by_family,
    conclusions,
    differences,
    gain_and_forgetting,
    side_by_side,
    verdicts,
)
from helpers.comparison.statistics import bootstrap, over_seeds, paired, wilson
from helpers.comparison.tables import NotComparable, accuracy, accuracy_interval, by_method, comparability, table
