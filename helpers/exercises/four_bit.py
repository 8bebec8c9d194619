"""Checks for the exercises of 06_qlora: bits per weight, merging, other levels. None needs 4-bit kernels."""

from collections.abc import Callable

from helpers.exercises import check, expect, need

import torch


@check
def bits_a_weight(bits: float, *, quantise: Callable, levels: torch.Tensor, block: int, group: int) -> str:
    """Bits per weight for another size of block, with scales of 8 bits of which ``group`` share one in fp32; counted."""
    codes, scales = quantise(torch.randn(group * block), levels, block)
    one = scales.numel() / codes.numel()
    truth = 4 + 8 * one + 32 * one / group
    mistakes = {
        4 + 32 * one: "that is with an fp32 number for each scale. Here each scale is one byte.",
        4 + 8 * one: f"the scales have a scale too, one in fp32 for {group} of them. Three decimals show it.",
    }
    stored = f"not {bits:g}. What is stored for each weight, each block, each {group} blocks?"
    expect(bits, truth, stored, mistakes, near=0.0005)
    return f"{truth:.3f} bits. Smaller blocks take more bits, for better fitting scales."


@check
def merged_right(merged: torch.Tensor, *, original, codes, scales, levels, update, quantise, dequantise) -> str:
    """The matrix, (out, in), that computes what ``update`` and the 4-bit weight made of ``original`` compute together."""
    need(merged.shape == original.shape, f"its shape is {tuple(merged.shape)}, W's is {tuple(original.shape)}.")
    held = dequantise(codes, scales, levels, original.shape)
    again = dequantise(*quantise(held + update, levels), levels, original.shape)

    def off(weight: torch.Tensor) -> float:
        """The error, in % of what the adapter changes."""
        return 100 * ((weight - held - update).norm() / update.norm()).item()

    merged, reason = merged.detach().cpu().float(), "which numbers did the adapter see when it was trained?"
    for wrong, why in (
        (original + update, "the adapter was never on these weights; they lack the rounding errors of the 4 bits."),
        (again, "quantised again, most weights fall back on the level that they had."),
        (held, "that is the base without the adapter."),
    ):
        reason = why if torch.allclose(merged, wrong, rtol=1e-3, atol=1e-6) else reason
    need(off(merged) < 1, f"off by {off(merged):.0f} % of what the adapter does: {reason}")
    others = f"into the original it would be {off(original + update):.0f} %, and quantised again {off(again):.0f} %"
    return f"off by {off(merged):.2g} % of what the adapter does; {others}."


@check
def better_levels(mine: list[float], *, weight, levels, quantise: Callable, dequantise: Callable) -> str:
    """At most as many levels as NF4 has, with a smaller error on this weight than NF4's, both in its blocks of 64."""

    def error(levels: torch.Tensor) -> float:
        back = dequantise(*quantise(weight, levels), levels, weight.shape)
        return 100 * ((weight - back).norm() / weight.norm()).item()

    mine = torch.tensor(mine)
    need(len(mine) <= len(levels), f"{len(mine)} levels: 4 bits can name {len(levels)}.")
    need((mine.diff() > 0).all(), "they have to ascend, one above the other: `quantise` looks between neighbours.")
    both = f"their error is {error(mine):.2f} %, NF4's {error(levels):.2f} %"
    closest = "Take the weights that share a level: where would one number be closest to all of them?"
    need(error(mine) < 0.99 * error(levels), f"{both}. {closest}")
    return f"{both}. They were made for this matrix; NF4's are one table for all matrices."
