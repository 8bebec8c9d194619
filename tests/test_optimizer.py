"""AdamW with fp32 master copies: it gathers what bf16 would round away, and in fp32 it is torch's own."""

from helpers.optimizer import AdamW

import torch


def test_masters_gather_steps_that_bf16_would_round_away():
    """Two hundred steps of 1e-5 on weights of 1: plain AdamW in bf16 moves nothing, with masters it arrives."""
    still, moved = (torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16)) for _ in range(2))
    plain, ours = torch.optim.AdamW([still], lr=1e-5, weight_decay=0), AdamW([moved], lr=1e-5, weight_decay=0)
    for _ in range(600):
        still.grad, moved.grad = torch.ones_like(still), torch.ones_like(moved)
        plain.step(), ours.step()
    assert torch.equal(still, torch.ones_like(still))
    assert torch.allclose(ours.state[moved]["master"], torch.tensor(1 - 600e-5), atol=1e-5)
    assert torch.equal(moved.detach(), ours.state[moved]["master"].to(torch.bfloat16)) and moved.max() < 1


def test_in_fp32_the_optimizer_is_torchs_and_its_state_is_saved_whole():
    torch.manual_seed(0)
    start, gradients = torch.randn(300), [torch.randn(300) for _ in range(4)]
    a, b = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours, theirs = AdamW([a], lr=1e-2, weight_decay=0.1), torch.optim.AdamW([b], lr=1e-2, weight_decay=0.1)
    for g in gradients:
        a.grad, b.grad = g.clone(), g.clone()
        ours.step(), theirs.step()
    assert torch.allclose(a, b, atol=1e-6)
    half = torch.nn.Parameter(start.to(torch.bfloat16))
    first = AdamW([half], lr=1e-4)
    half.grad = gradients[0].to(torch.bfloat16)
    first.step()
    again = AdamW([torch.nn.Parameter(half.detach().clone())], lr=1e-4)
    again.load_state_dict(first.state_dict())
    kept = again.state[again.param_groups[0]["params"][0]]
    assert kept["master"].dtype == torch.float32 and torch.equal(kept["master"], first.state[half]["master"])
