"""What the makers say that their cards can do: the roof of a measurement. Dense bf16, by device as torch counts them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """``tflops`` of dense bf16 matrix products and ``bandwidth`` of the memory in GB/s, from the maker's page."""

    tflops: float
    bandwidth: float
    source: str


_AMD = "https://www.amd.com/en/products/"
_INSTINCT = _AMD + "accelerators/instinct/"
_RADEON = _AMD + "graphics/desktops/radeon/"
_PRO = _AMD + "graphics/workstations/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
# The first pattern that is found in the product's name. An MI250 or MI250X is two devices: each has half of the card.
_PEAKS = [
    (r"MI355X", Peak(2516.6, 8000, _INSTINCT + "mi350/mi355x.html")),
    (r"MI350X", Peak(2306.9, 8000, _INSTINCT + "mi350/mi350x.html")),
    (r"MI325X", Peak(1307.4, 6000, _INSTINCT + "mi300/mi325x.html")),
    (r"MI300X", Peak(1307.4, 5300, _INSTINCT + "mi300/mi300x.html")),
    (r"MI300A", Peak(980.6, 5300, _INSTINCT + "mi300/mi300a.html")),
    (r"MI250X(?! ?/)", Peak(191.5, 1638.4, _INSTINCT + "mi200/mi250x.html")),
    (r"MI250\b", Peak(181.0, 1638.4, _INSTINCT + "mi200/mi250.html")),
    (r"MI210", Peak(181.0, 1638.4, _INSTINCT + "mi200/mi210.html")),
    (r"PRO W7900", Peak(122.6, 864, _PRO + "radeon-pro/w7900.html")),
    (r"RX 7900 XTX", Peak(122.8, 960, _RADEON + "7000-series/amd-radeon-rx-7900xtx.html")),
    (r"RX 7900 XT\b", Peak(103.2, 800, _RADEON + "7000-series/amd-radeon-rx-7900xt.html")),
    (r"R9700", Peak(191.0, 640, _PRO + "radeon-ai-pro/ai-9000-series/amd-radeon-ai-pro-r9700.html")),
    (r"RX 9070 XT", Peak(195.0, 640, _RADEON + "9000-series/amd-radeon-rx-9070xt.html")),
    (r"8060S", Peak(59.4, 256, _AMD + "processors/laptop/ryzen/ai-300-series/amd-ryzen-ai-max-plus-395.html")),
    (r"H200", Peak(989.5, 4800, _NVIDIA + "h200/")),
    (r"H100.*HBM3", Peak(989.5, 3350, _NVIDIA + "h100/")),
    (r"A100.*80GB", Peak(312.0, 2039, _NVIDIA + "a100/")),
]


def peak(name: str | None, compute_partition: str | None = None) -> Peak | None:
    """The roof of a product; None for one not listed and for a part of a card, whose share nobody states."""
    if compute_partition not in (None, "SPX"):
        return None
    return next((p for pattern, p in _PEAKS if re.search(pattern, name or "", re.IGNORECASE)), None)
