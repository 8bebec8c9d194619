"""Checks for the exercises of 06_qlora: bits per weight, merging, other levels. None needs 4-bit kernels."""

from __future__ import annotations

from collections.abc import Callable

from helpers.exercises import check, expect, need

import torch


@check
def bits_a_weight(bits: float, *, quantise: Callable, levels: torch.Tensor, block: int, group: int) -> str:
    """Bits per weight for another size of block, with scales of 8 bits of which ``group`` share one in fp32; counted."""

    def counted(block: int, scale: int = 8, shared: int = 32) -> float:
        codes, scales = quantise(torch.randn(group * block), levels, block)
        return (4 * codes.numel() + scale * scales.numel() + shared * scales.numel() / group) / codes.numel()

    truth, double = counted(block), counted(2 * block)
    mistakes = {
        truth / 8: "that is in bytes.",
        double: f"that is for blocks of {2 * block}.",
        counted(block, 32, 0): "that is with an fp32 number for each scale. Here each scale is one byte.",
        counted(block, 8, 0): f"the scales have a scale too, one in fp32 for {group} of them. Three decimals show it.",
        counted(block, 0, 0): "that is without the scales.",
    }
    stored = f"not {bits:g}. What is stored for each weight, each block, each {group} blocks?"
    expect(bits, truth, stored, *mistakes.items(), near=0.0005)
    return f"{truth:.3f} bits: {truth - double:.3f} more than with blocks of {2 * block}, for better fitting scales."


@check
def merged_right(merged: torch.Tensor, *, original, codes, scales, levels, update, quantise, dequantise) -> str:
    """The matrix, (out, in), that computes what ``update`` and the 4-bit weight made of ``original`` compute together."""
    need(merged.shape == original.shape, f"its shape is {tuple(merged.shape)}, W's is {tuple(original.shape)}.")
    merged = merged.detach().cpu().float()
    held = dequantise(codes, scales, levels, original.shape)
    again = dequantise(*quantise(held + update, levels), levels, original.shape)
    inputs = torch.randn(64, original.shape[1])

    def off(weight: torch.Tensor) -> float:
        """The error of the outputs, in % of what the adapter changes in them."""
        return 100 * ((inputs @ (weight - held - update).T).norm() / (inputs @ update.T).norm()).item()

    mistake = f"off by {off(merged):.0f} % of what the adapter does"
    for wrong, reason in (
        (original + update, "the adapter was never on these weights; they lack the rounding errors of the 4 bits."),
        (again, "quantised again, most weights fall back on the level that they had."),
        (held, "that is the base without the adapter."),
        (original, "that is the base without the adapter, and not the one that it was trained on."),
    ):
        need(not torch.allclose(merged, wrong, rtol=1e-3, atol=1e-6), f"{mistake}: {reason}")
    need(off(merged) < 1, f"{mistake}. Which numbers did the adapter see when it was trained? Add to them, in fp32.")
    others = f"into the original it would be {off(original + update):.0f} %, and quantised again {off(again):.0f} %"
    return f"off by {off(merged):.2g} % of what the adapter does; {others}."


@check
def better_levels(mine: list[float], *, weight, levels, quantise: Callable, dequantise: Callable) -> str:
    """At most as many levels as NF4 has, with a smaller error on this weight than NF4's, both in its blocks of 64."""

    def error(levels: torch.Tensor) -> float:
        back = dequantise(*quantise(weight, levels), levels, weight.shape)
        return 100 * ((weight - back).norm() / weight.norm()).item()

    mine = torch.tensor(mine)
    need(mine.isfinite().all(), "the levels have to be finite numbers.")
    need(len(mine) <= len(levels), f"{len(mine)} levels: 4 bits can name {len(levels)}.")
    need((mine.diff() > 0).all(), "they have to ascend, one above the other: `quantise` looks between neighbours.")
    both = f"their error is {error(mine):.2f} %, NF4's {error(levels):.2f} %"
    closest = "Take the weights that share a level: where would one number be closest to all of them?"
    need(error(mine) < 0.99 * error(levels), f"{both}. {closest}")
    zero = "" if (mine == 0).any() else " But zero is none of them: a weight that is zero would not stay zero."
    return f"{both}. They were made for this matrix; NF4's are one table for all matrices.{zero}"
