"""What only trying tells: each trial runs PyTorch on the device and returns a case of ``findings.toml`` and its facts.

:mod:`helpers.doctor.probes` runs this module in a process of its own, which prints a line of JSON for each trial.
"""

import json
import logging
import math
import os
import re
import sys
from contextlib import nullcontext, suppress
from importlib import import_module, metadata, util

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

# what the series uses of each package; naming it makes the package load its parts
PACKAGES = {"transformers": "AutoModelForCausalLM", "peft": "LoraConfig", "trl": "SFTTrainer", "datasets": "Dataset"}
PACKAGES |= {"accelerate": "Accelerator", "bitsandbytes": "functional"}
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if GPU else "cpu")


def _error(rough: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative error, by the norm; NaN counts as infinite."""
    error = ((rough.float() - exact.float()).norm() / exact.float().norm()).item()
    return error if error == error else math.inf


def _percent(error: float) -> str:
    """A relative error in words."""
    return f"{100 * error:.2g} %" if error < 10 else "1000 % or more, or NaN"


def _reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def torch_sees() -> dict:
    """The build of torch, and the devices that it sees."""
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        place = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
        device = {"name": properties.name, "total": total, "free": free}
        device["gfx"] = getattr(properties, "gcnArchName", None) if torch.version.hip else None
        device["integrated"] = bool(getattr(properties, "is_integrated", False))
        device["bus"] = None if None in place else "{:04x}:{:02x}:{:02x}.0".format(*place)
        with suppress(Exception):  # these need a package of the maker, and a driver that answers
            device["temperature"] = torch.cuda.temperature(index)
            device["power"] = torch.cuda.power_draw(index) / 1000  # milliwatts
        devices.append(device)
    built_for = torch.cuda.get_arch_list() if GPU else []
    return {"version": torch.__version__, "hip": torch.version.hip, "devices": devices, "built_for": built_for}


def bf16() -> dict:
    """Whether a product in bf16 is as near to fp32 as seven bits of fraction allow."""
    a, b = torch.randn(2, 256, 256, device=DEVICE)
    error = _error(a.bfloat16() @ b.bfloat16(), a @ b)
    return {"case": "right" if error < 0.02 else "wrong", "error": _percent(error)}


def attention() -> dict:
    """torch's fused attention against its math kernel, forward and backward, in the three forms that models ask for.

    Causal; causal with fewer heads for keys and values; and with padding on the left. For each the kernel that runs.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)  # as in training
    query, key, value = torch.randn(3, 2, 4, 128, 64, device=DEVICE, dtype=torch.bfloat16 if GPU else torch.float32)
    padded = torch.ones(2, 1, 128, 128, dtype=torch.bool, device=DEVICE).tril()
    padded[1, :, :, :40] = False
    padded[1, :, range(128), range(128)] = True  # a padded row still sees itself, as in transformers' masks
    grouped = {"is_causal": True, "enable_gqa": True}
    forms = {"causal": (4, {"is_causal": True}), "grouped": (2, grouped), "padded": (4, {"attn_mask": padded})}
    kernels, errors = {}, []
    for form, (heads, options) in forms.items():
        results = []
        for backend in (nullcontext(), sdpa_kernel(SDPBackend.MATH)):
            inputs = [t.clone().requires_grad_() for t in (query, key[:, :heads], value[:, :heads])]
            with backend, profile(activities=[ProfilerActivity.CPU]) as seen:
                out = sdpa(*inputs, **options)
            out.float().square().sum().backward()
            results.append([out.detach(), *(t.grad for t in inputs)])
            kernels.setdefault(form, kernel_that_ran(seen))
        errors += [_error(fused, plain) for fused, plain in zip(*results, strict=True)]
    slow, case = [form for form, kernel in kernels.items() if kernel == "math"], "right"
    if max(errors) > 0.05:
        case = "wrong"
    elif slow and GPU:
        allowed = os.environ.get("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL") == "1"
        case = "math_cuda" if not torch.version.hip else "math_still" if allowed else "math"
    named = ", ".join(f"{kernel} ({form})" for form, kernel in kernels.items())
    return {"case": case, "error": _percent(max(errors)), "forms": " and ".join(slow), "kernels": named}


def kernel_that_ran(seen: profile) -> str:
    """The kernel that torch really ran for attention, as its profiler saw it: flash, efficient, cudnn, math."""
    called = " ".join(event.key for event in seen.key_averages())
    found = re.search(r"::_scaled_dot_product_(?:attention_)?(flash|efficient|cudnn|math|fused)", called)
    return found[1] if found else "unknown"


def four_bits() -> dict:
    """A matrix stored in NF4 and read back, products with it, and the compiled library that did it.

    Answers are generated one token after another, a product of one row, for which the library has a kernel of its own.
    Each product is compared with that of the matrix read back, for each half of the outputs: a kernel written for
    another width of the processor's units leaves a part of them wrong.
    """
    import bitsandbytes
    from bitsandbytes.cextension import lib
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    products = {}
    for dtype in (torch.bfloat16, torch.float16 if GPU else torch.float32):
        matrix = torch.randn(256, 512, device=DEVICE, dtype=dtype)
        packed, state = quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
        back = dequantize_4bit(packed, state)
        for rows in (1, 8):
            x = torch.randn(rows, 512, device=DEVICE, dtype=dtype)
            both = bitsandbytes.matmul_4bit(x, packed.t(), quant_state=state), x.float() @ back.float().T
            halves = zip(*(y.chunk(2, dim=-1) for y in both), strict=True)
            products[f"{rows} x {str(dtype).removeprefix('torch.')}"] = max(_error(*half) for half in halves)
    error, library, hip = _error(back, matrix), os.path.basename(lib._lib._name), torch.version.hip or ""
    product, wrong = max(products.items(), key=lambda item: item[1])
    case = "right"
    if not 0.02 < error < 0.2:  # 9 % is what 16 levels leave of normal numbers
        case = "stored_wrong"
    elif wrong > 0.05:
        case = "product_wrong"
    elif GPU and "cpu" in library:
        case = "library_of_cpu"
    elif hip and library != f"libbitsandbytes_rocm{''.join(hip.split('.')[:2])}.so":
        case = "other_rocm"
    facts = {"case": case, "version": bitsandbytes.__version__, "library": library, "hip": hip}
    return facts | {"error": _percent(error), "product": product, "wrong": _percent(wrong)}


def triton() -> dict:
    """Whether Triton compiles a product in bf16 for this device, and whether it is right."""
    if not GPU or util.find_spec("triton") is None:
        return {"skipped": "the package triton is not installed" if GPU else "a GPU is needed"}
    product = import_module("helpers.doctor.triton_product").product  # it cannot be imported without Triton
    a, b = (torch.randn(64, 64, device=DEVICE).bfloat16() for _ in range(2))
    error = _error(product(a, b), a @ b)
    return {"case": "right" if error < 0.02 else "wrong", "error": _percent(error)}


def speed() -> dict:
    """TFLOP/s of a matrix product in fp32 and bf16, and GB/s of a copy (bytes read and bytes written)."""
    threads = torch.get_num_threads()  # as in training; a timer's default is one

    def fastest(statement: str, **names) -> float:  # in seconds; the first runs choose and load a kernel
        timer = Timer(statement, globals=names, num_threads=threads)
        return min(timer.blocked_autorange(min_run_time=0.7).times)

    result = {"n": 8192 if GPU else 1024}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(result["n"], result["n"], device=DEVICE).to(dtype)
        result[name] = 2 * result["n"] ** 3 / fastest("a @ a", a=a) / 1e12
    room = torch.cuda.mem_get_info()[0] // 8 if GPU else 2**26
    a = torch.ones(min(2**30, room), dtype=torch.uint8, device=DEVICE)
    return result | {"copy": 2 * a.nbytes / fastest("b.copy_(a)", a=a, b=torch.empty_like(a)) / 1e9}


def packages() -> dict:
    """Each package really imported: the versions, or the errors."""
    working, broken = [], []
    for name, part in PACKAGES.items():
        try:
            getattr(import_module(name), part)
            working.append(f"{name} {metadata.version(name)}")
        except Exception as error:
            broken.append(f"{name} ({_reason(error)})")
    return {"case": "broken" if broken else "work", "names": ", ".join(broken or working)}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else the libraries print is kept apart
    for name in sys.argv[1:]:
        torch.manual_seed(0)
        try:
            result = globals()[name]()
        except Exception as error:
            result = {"failed": _reason(error)}
        print(json.dumps(result), file=answers, flush=True)
