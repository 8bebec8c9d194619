"""What only trying tells: each probe runs PyTorch on the device and returns what it saw. A process of its own.

A kernel that the driver cannot run may end the process or never return. So the doctor starts ``python -m
helpers.doctor.probes NAME...``, which prints one line of JSON for each probe, and goes on with the next probe in a
new process if one dies or takes too long.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module, metadata
from queue import Empty, Queue

# what the series uses of each package; naming it makes the package load its parts
PACKAGES = {
    "transformers": "AutoModelForCausalLM", "peft": "LoraConfig", "trl": "SFTTrainer", "datasets": "Dataset",
    "accelerate": "Accelerator", "bitsandbytes": "functional",
}  # fmt: skip


def _device():
    import torch

    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def torch_sees() -> dict:
    """The build of torch, and the devices that it sees."""
    import torch

    seen = {
        "version": torch.__version__, "hip": torch.version.hip, "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(), "devices": [],
        "built_for": torch.cuda.get_arch_list() if torch.cuda.is_available() else [],
    }  # fmt: skip
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        place = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
        seen["devices"].append({
            "name": properties.name, "total": total, "free": free,
            "gfx": getattr(properties, "gcnArchName", None) if torch.version.hip else None,
            "capability": None if torch.version.hip else f"sm_{properties.major}{properties.minor}",
            "integrated": bool(getattr(properties, "is_integrated", False)),
            "bus": None if None in place else "{:04x}:{:02x}:{:02x}.0".format(*place),
        })  # fmt: skip
    return seen


def bf16() -> dict:
    """Whether a product in bf16 is finite and as near to fp32 as seven bits of fraction allow."""
    import torch

    torch.manual_seed(0)
    a, b = torch.randn(256, 256, device=_device()), torch.randn(256, 256, device=_device())
    exact, rough = a @ b, (a.bfloat16() @ b.bfloat16()).float()
    return {"finite": bool(rough.isfinite().all()), "error": ((rough - exact).norm() / exact.norm()).item()}


def _attention_error(fused, plain, tensors) -> dict:
    """Compare outputs and gradients of two functions of query, key and value."""
    import torch

    results = []
    for function in (fused, plain):
        inputs = [t.detach().clone().requires_grad_() for t in tensors]
        out = function(*inputs)
        out.float().square().sum().backward()
        results.append([out.detach().float(), *(t.grad.float() for t in inputs)])
    finite = all(bool(t.isfinite().all()) for t in results[0])
    error = max(((x - y).norm() / y.norm()).item() for x, y in zip(*results, strict=True))
    return {"finite": finite, "error": error if error == error else None, "torch": torch.__version__}


def attention() -> dict:
    """torch's fused attention against the formula, forward and backward, causal and with padding on the left."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    torch.manual_seed(0)
    dtype = torch.bfloat16 if _device().type == "cuda" else torch.float32
    tensors = [torch.randn(2, 4, 128, 64, device=_device(), dtype=dtype) for _ in range(3)]
    causal = torch.ones(128, 128, dtype=torch.bool, device=_device()).tril()
    padded = causal.repeat(2, 1, 1, 1)
    padded[1, :, :, :40] = False
    padded[1, :, range(128), range(128)] = True  # a padded row still sees itself, as in transformers' masks

    def plain(*inputs, mask):
        with sdpa_kernel(SDPBackend.MATH):
            return sdpa(*inputs, attn_mask=mask)

    cases = [
        _attention_error(lambda *i: sdpa(*i, is_causal=True), lambda *i: plain(*i, mask=causal), tensors),
        _attention_error(lambda *i: sdpa(*i, attn_mask=padded), lambda *i: plain(*i, mask=padded), tensors),
    ]
    errors = [case["error"] for case in cases]
    return {"finite": all(c["finite"] for c in cases), "error": None if None in errors else max(errors)}


def varlen() -> dict:
    """torch's attention over rows of different length laid end to end, against attention row by row."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    if _device().type == "cpu":
        return {"skipped": "a GPU is needed"}
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return {"skipped": f"torch {torch.__version__} does not have it"}
    torch.manual_seed(0)
    ends = torch.tensor([0, 48, 128], dtype=torch.int32, device=_device())
    tensors = [torch.randn(128, 4, 64, device=_device(), dtype=torch.bfloat16) for _ in range(3)]
    known = inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}

    def rows(*inputs):
        parts = []
        for first, last in ((0, 48), (48, 128)):
            q, k, v = (t[first:last].transpose(0, 1)[None] for t in inputs)
            parts.append(sdpa(q, k, v, is_causal=True)[0].transpose(0, 1))
        return torch.cat(parts)

    return _attention_error(lambda *i: varlen_attn(*i, ends, ends, 80, 80, **causal), rows, tensors)


def four_bits() -> dict:
    """A matrix stored in NF4 and read back, and the compiled library that did it."""
    import torch

    logging.disable(logging.WARNING)
    import bitsandbytes
    from bitsandbytes.cextension import lib
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.manual_seed(0)
    matrix = torch.randn(256, 256, device=_device())
    back = dequantize_4bit(*quantize_4bit(matrix, quant_type="nf4"))
    library = getattr(getattr(lib, "_lib", None), "_name", None)
    return {
        "version": bitsandbytes.__version__, "library": os.path.basename(library) if library else None,
        "error": ((back - matrix).norm() / matrix.norm()).item(),
    }  # fmt: skip


def _fastest(function, synchronize, seconds: float = 0.7) -> float:
    """The shortest of several timings, the first left out: it includes choosing and loading a kernel."""
    times, begun = [], time.perf_counter()
    while len(times) < 4 or (time.perf_counter() - begun < seconds and len(times) < 60):
        start = time.perf_counter()
        function()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def speed() -> dict:
    """TFLOP/s of a matrix product in fp32 and bf16, and GB/s of a copy (bytes read and bytes written)."""
    import torch

    device = _device()
    on_gpu = device.type == "cuda"
    synchronize = torch.cuda.synchronize if on_gpu else (lambda: None)
    n = 8192 if on_gpu else 1024
    result = {"n": n}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(n, n, device=device).to(dtype)
        result[name] = 2 * n**3 / _fastest(lambda a=a: a @ a, synchronize) / 1e12
    room = torch.cuda.mem_get_info()[0] // 8 if on_gpu else 2**26
    source = torch.ones(min(2**30, room), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    result["copy"] = 2 * source.nbytes / _fastest(lambda: target.copy_(source), synchronize) / 1e9
    return result


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


PROBES = {f.__name__: f for f in (torch_sees, bf16, attention, varlen, four_bits, speed, packages)}


# --- the other side: the process that asks ------------------------------------------------------------------------


def ask(names: list[str], seconds: float = 60, environment: dict[str, str] | None = None) -> dict[str, dict]:
    """Run probes in processes of their own.

    Args:
        seconds: for one probe; the first gets as long again, for the import of torch.

    Returns:
        By probe its result, or {"failed": reason}. Always an entry for each name.
    """
    found: dict[str, dict] = {}
    while left := [name for name in names if name not in found]:
        command = [sys.executable, "-W", "ignore", "-m", "helpers.doctor.probes", *left]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True,
            env=environment, cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))), start_new_session=True,
        )  # fmt: skip
        lines: Queue = Queue()
        threading.Thread(target=lambda p=process, q=lines: [*map(q.put, p.stdout), q.put("")], daemon=True).start()
        for order, name in enumerate(left):
            try:
                line = lines.get(timeout=seconds * (1 if order else 2))
            except Empty:
                os.killpg(process.pid, signal.SIGKILL)  # not waited for: the driver may hold it
                found[name] = {"failed": f"no answer within {seconds:g} s"}
                break
            if not line:
                code = process.wait()
                cause = signal.Signals(-code).name if code < 0 else f"code {code}"
                found[name] = {"failed": f"the process ended with {cause}"}
                break
            found[name] = json.loads(line)
    return found


def main(names: list[str]) -> None:
    """Run the probes and print a line for each; whatever else the libraries print is kept apart."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in names:
        try:
            result = PROBES[name]()
        except Exception as error:
            result = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
