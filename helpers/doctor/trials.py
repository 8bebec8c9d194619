"""What only trying tells: each trial runs PyTorch on the device and returns what it saw. ``python -m`` prints it as JSON.

:mod:`helpers.doctor.probes` runs this module in a process of its own.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from contextlib import suppress
from importlib import import_module, metadata, util

from helpers.device import varlen_probe

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.utils.benchmark import Timer

# what the series uses of each package; naming it makes the package load its parts
PACKAGES = {"transformers": "AutoModelForCausalLM", "peft": "LoraConfig", "trl": "SFTTrainer", "datasets": "Dataset"}
PACKAGES |= {"accelerate": "Accelerator", "bitsandbytes": "functional"}


def _device() -> torch.device:
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def _error(rough: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative error, by the norm; NaN and infinity become 1e9, since JSON has no number for them."""
    error = ((rough.float() - exact.float()).norm() / exact.float().norm()).item()
    return error if error < 1e9 else 1e9


def torch_sees() -> dict:
    """The build of torch, and the devices that it sees."""
    seen = {"version": torch.__version__, "hip": torch.version.hip, "cuda": torch.version.cuda, "devices": []}
    seen["built_for"] = torch.cuda.get_arch_list() if torch.cuda.is_available() else []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        place = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
        device = {"name": properties.name, "total": total, "free": free}
        device["gfx"] = getattr(properties, "gcnArchName", None) if torch.version.hip else None
        for name, ask in (("temperature", torch.cuda.temperature), ("power", torch.cuda.power_draw)):
            with suppress(Exception):  # they need a package of the maker, and a driver that answers
                device[name] = ask(index) / (1000 if name == "power" else 1)  # power comes in milliwatts
        device["integrated"] = bool(getattr(properties, "is_integrated", False))
        device["bus"] = None if None in place else "{:04x}:{:02x}:{:02x}.0".format(*place)
        seen["devices"].append(device)
    return seen


def bf16() -> dict:
    """Whether a product in bf16 is finite and as near to fp32 as seven bits of fraction allow."""
    a, b = torch.randn(256, 256, device=_device()), torch.randn(256, 256, device=_device())
    rough = a.bfloat16() @ b.bfloat16()
    return {"finite": bool(rough.isfinite().all()), "error": _error(rough, a @ b)}


def _compare(fused, plain, tensors) -> dict:
    """Compare outputs and gradients of two functions of query, key and value."""
    results = []
    for function in (fused, plain):
        inputs = [t.detach().clone().requires_grad_() for t in tensors]
        out = function(*inputs)
        out.float().square().sum().backward()
        results.append([out.detach(), *(t.grad for t in inputs)])
    finite = all(bool(t.isfinite().all()) for t in results[0])
    return {"finite": finite, "error": max(_error(x, y) for x, y in zip(*results, strict=True))}


def attention_kernel(function, *tensors) -> str:
    """The kernel that torch really runs inside a call of SDPA, as its profiler sees it: flash, efficient, math..."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function(*(t.detach().clone().requires_grad_() for t in tensors))
    called = " ".join(event.key for event in profile.key_averages())
    found = re.search(r"::_scaled_dot_product_(?:attention_)?(flash|efficient|cudnn|math|fused)", called)
    return found[1] if found else "unknown"


def attention() -> dict:
    """torch's fused attention against the formula, forward and backward, in the three forms that models ask for.

    Causal; causal with fewer heads for keys and values; and with padding on the left. For each the kernel that runs.
    """
    dtype = torch.bfloat16 if _device().type == "cuda" else torch.float32
    tensors = [torch.randn(2, 4, 128, 64, device=_device(), dtype=dtype) for _ in range(3)]
    grouped = [tensors[0], *(t[:, :2] for t in tensors[1:])]
    causal = torch.ones(128, 128, dtype=torch.bool, device=_device()).tril()
    padded = causal.repeat(2, 1, 1, 1)
    padded[1, :, :, :40] = False
    padded[1, :, range(128), range(128)] = True  # a padded row still sees itself, as in transformers' masks
    forms = {
        "causal": (tensors, {"is_causal": True}, {"attn_mask": causal}),
        "grouped": (grouped, {"is_causal": True, "enable_gqa": True}, {"attn_mask": causal, "enable_gqa": True}),
        "padded": (tensors, {"attn_mask": padded}, {"attn_mask": padded}),
    }
    results, kernels = [], {}
    for form, (inputs, options, plain_options) in forms.items():

        def plain(*i, options=plain_options):
            with sdpa_kernel(SDPBackend.MATH):
                return sdpa(*i, **options)

        results.append(_compare(lambda *i, options=options: sdpa(*i, **options), plain, inputs))
        kernels[form] = attention_kernel(lambda *i, options=options: sdpa(*i, **options), *inputs)
    error = max(result["error"] for result in results)
    return {"finite": all(result["finite"] for result in results), "error": error, "kernels": kernels}


def varlen() -> dict:
    """torch's attention over rows of different length laid end to end, against attention row by row."""
    if _device().type == "cpu":
        return {"skipped": "a GPU is needed"}
    wrong = varlen_probe("cuda:0")
    return {"failed": wrong} if wrong else {}


def four_bits() -> dict:
    """A matrix stored in NF4 and read back, products with it, and the compiled library that did it.

    Answers are generated one token after another, a product of one row, for which the library has a kernel of its own.
    Each product is compared with that of the matrix read back, for each half of the outputs: a kernel written for
    another width of the processor's units leaves a part of them wrong.
    """
    logging.disable(logging.WARNING)
    import bitsandbytes
    from bitsandbytes.cextension import lib
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    products = {}
    for dtype in (torch.bfloat16, torch.float16 if _device().type == "cuda" else torch.float32):
        matrix = torch.randn(256, 512, device=_device(), dtype=dtype)
        packed, state = quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
        back = dequantize_4bit(packed, state)
        for rows in (1, 8):
            x = torch.randn(rows, 512, device=_device(), dtype=dtype)
            halves = zip(*(y.chunk(2, dim=-1) for y in four_bit_and_plain(x, packed, state, back)), strict=True)
            products[f"{rows} x {str(dtype).removeprefix('torch.')}"] = max(_error(*half) for half in halves)
    library = getattr(getattr(lib, "_lib", None), "_name", None)
    result = {"version": bitsandbytes.__version__, "library": os.path.basename(library) if library else None}
    return result | {"error": _error(back, matrix), "products": products}


def four_bit_and_plain(x, packed, state, back) -> tuple[torch.Tensor, torch.Tensor]:
    """The product of rows with a 4-bit matrix, and with the same matrix read back; without gradients, as in answers."""
    import bitsandbytes

    return bitsandbytes.matmul_4bit(x, packed.t(), quant_state=state), x.float() @ back.float().T


def triton() -> dict:
    """Whether Triton compiles a product in bf16 for this device, and whether it is right."""
    if _device().type == "cpu":
        return {"skipped": "a GPU is needed"}
    if util.find_spec("triton") is None:
        return {"skipped": "the package triton is not installed"}
    product = import_module("helpers.doctor.triton_product").product  # it cannot be imported without Triton
    a, b = (torch.randn(64, 64, device=_device()).bfloat16() for _ in range(2))
    return {"error": _error(product(a, b), a @ b)}


def _fastest(statement: str, **names) -> float:
    """The shortest of several timings in seconds; the first runs, which choose and load a kernel, do not count."""
    return min(Timer(statement, globals=names).blocked_autorange(min_run_time=0.7).times)


def speed() -> dict:
    """TFLOP/s of a matrix product in fp32 and bf16, and GB/s of a copy (bytes read and bytes written)."""
    on_gpu = _device().type == "cuda"
    n = 8192 if on_gpu else 1024
    result = {"n": n}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(n, n, device=_device()).to(dtype)
        result[name] = 2 * n**3 / _fastest("a @ a", a=a) / 1e12
    room = torch.cuda.mem_get_info()[0] // 8 if on_gpu else 2**26
    source = torch.ones(min(2**30, room), dtype=torch.uint8, device=_device())
    seconds = _fastest("target.copy_(source)", source=source, target=torch.empty_like(source))
    return result | {"copy": 2 * source.nbytes / seconds / 1e9}


def packages() -> dict:
    """Each package really imported: its version, and "works" or the error."""
    logging.disable(logging.WARNING)
    result = {}
    for name, part in PACKAGES.items():
        try:
            getattr(import_module(name), part)
            result[name] = [metadata.version(name), "works"]
        except Exception as error:
            result[name] = [None, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"]
    return result


def main(names: list[str]) -> None:
    """Run the trials and print a line for each; whatever else the libraries print is kept apart."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in names:
        torch.manual_seed(0)
        try:
            result = globals()[name]()
        except Exception as error:
            result = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
