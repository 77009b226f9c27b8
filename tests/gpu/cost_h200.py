"""Peak memory and step time of every method's real step at the shape of Llama-7B, on a CUDA device, as JSON.

    PYTHONPATH=src python tests/gpu/cost_h200.py --out measured.json      (about 5 minutes, an 80 GB device or larger)

Weights are drawn at random on the device, in 16 bit. ``benchmarks/cost_against_gpu.py`` puts the cost model's
prediction beside each row. ``--methods adapter_tuning`` measures the training of the paper's adapters alone
(``cost/tuning.py``: 128, 256 and 512 tokens, a minute), ``--methods joined_scoring`` scoring with adapters alone,
``--adapters`` low-rank adapters on all layers alone. A row that does not fit the device says so. Needs torch,
transformers, accelerate; peft for the methods with adapters.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import sys
import time
import traceback
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

if importlib.util.find_spec("pydantic") is None:  # it checks params.yaml, which is not read here
    stand_in: Any = types.ModuleType("pydantic")
    stand_in.BaseModel = type("BaseModel", (), {"model_fields": {}})
    stand_in.ValidationError = type("ValidationError", (Exception,), {})
    stand_in.ConfigDict = stand_in.Field = lambda *args, **kwargs: None
    stand_in.model_validator = lambda **kwargs: lambda function: function
    sys.modules["pydantic"] = stand_in

from assyllm.cost import methods
from assyllm.cost.methods import JOINED, STEPS, TUNING, step_of
from assyllm.cost.selection import Residency
from assyllm.cost.shapes import config_of
from assyllm.cost.step import Reading, Step, build, fill, questions
from assyllm.quantizer import packed as packed_layers

LENGTHS = (256, 128, 512)  # the one that matters most first
STATELESS = "sgd"
TIMED = 2


def rows() -> list[tuple[str, Reading, Residency | None]]:
    """What is measured, the rows that matter most first."""
    found: list[tuple[str, Reading, Residency | None]] = []
    found += [(TUNING, Reading(tokens=tokens), Residency(1, 1, 16)) for tokens in LENGTHS]  # a layer at a time
    found += [(JOINED, Reading(tokens=tokens), Residency(2, 2, bits)) for tokens in LENGTHS for bits in (16, 6)]
    for tokens in LENGTHS:  # adapters on all linear layers, and as many directions as FwdLLM asks for at most
        found += [(m, Reading(tokens=tokens, targets="all"), None) for m in ("lora", "qlora", "qlora_recomputation")]
        found.append(("fwdllm", Reading(tokens=tokens, rank=1, directions=4), None))
    once = [method for method in STEPS if method not in ("ft_practical", "lora_all")]  # the same steps again
    for tokens in LENGTHS:
        for method in once:
            found.append((method, Reading(tokens=tokens, optimizer=STATELESS), None))
        for resident, bits in ((1, 16), (2, 16), (4, 16), (1, 8), (2, 4)):
            found.append(("assyllm_paper", Reading(tokens=tokens), Residency(4, resident, bits)))
    for tokens in LENGTHS:
        for method in ("ft_oracle", "qlora_recomputation", "recomputation", "swapping"):
            found.append((method, Reading(tokens=tokens, optimizer="adamw"), None))
    return found


def bitsandbytes_step(config: dict[str, Any], reading: Reading) -> Step:
    """QLoRA's own step on bitsandbytes' layers (``step_of`` has ours, whose weights plain torch decodes)."""
    from assyllm.baselines.local import Local, start_state
    from assyllm.baselines.qlora import four_bit

    model = build(config, reading)
    fill(model, "cuda")
    methods.pack_nf4, ours = four_bit, methods.pack_nf4  # type: ignore[assignment]
    try:
        subject = methods._QLora(model, methods.settings(reading))
    finally:
        methods.pack_nf4 = ours
    weights = {name: tensor.to("cuda") for name, tensor in subject.start().items()}
    state = start_state(weights, reading.optimizer)
    batch = questions(config["model_type"], reading, config["vocab_size"], "cuda")
    local = Local(1e-4, 1, reading.batch, reading.optimizer)
    return Step(lambda: subject.step(weights, state, 1, batch, local), {}, keep=[subject])


def measure(
    method: str, reading: Reading, residency: Residency | None, config: dict[str, Any], kernel: str = ""
) -> dict[str, Any]:
    """Peak bytes and median seconds of a step; the first one warms up."""
    row: dict[str, Any] = {"method": method, "model": "llama-7b", "kernel": kernel, **asdict(reading)}
    row |= {"residency": asdict(residency) if residency else None}
    try:
        step = bitsandbytes_step(config, reading) if kernel == "bitsandbytes" else None
        step = step or step_of(method, config, reading, residency, "cuda")
        gc.collect()
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()  # the last row's; this one takes its own again
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(1 + TIMED):
            began = time.perf_counter()
            step.run()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated()
        row |= {"held_bytes": held, "peak_bytes": peak, "step_s": statistics.median(seconds[1:]), "status": "ok"}
    except torch.cuda.OutOfMemoryError:
        row |= {"status": "does not fit this device"}
    except Exception as error:  # one method's failure must not cost the others their slot
        row |= {"status": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-1500:]}
    return row


def workspace() -> dict[str, int]:
    """Bytes that cuBLAS takes for a first product in the forward and in the backward pass."""
    x = torch.randn(512, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    before = torch.cuda.memory_allocated()
    y = x @ x
    forward = torch.cuda.memory_allocated() - before - y.numel() * 2
    torch.autograd.grad(y.float().pow(2).sum(), x)
    del y
    backward = torch.cuda.memory_allocated() - before - forward
    return {"forward_bytes": forward, "backward_bytes": backward}


def rates() -> dict[str, float]:
    """This device's own ceilings: a 16-bit matrix product (FLOP/s) and a copy (bytes/s, read and written)."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = _fastest(lambda: a @ b)
    source = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source))
    return {"matmul_flops": 2 * 8192**3 / product, "copy_bytes": 2 * source.numel() * 2 / copy}


def _fastest(call: Any) -> float:
    times = []
    for _ in range(8):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[2:])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=330, help="no row is begun after this")
    parser.add_argument("--methods", nargs="*", help="these only")
    parser.add_argument("--adapters", action="store_true", help="only other adapters than rank 8 on queries and values")
    parser.add_argument("--bitsandbytes", action="store_true", help="QLoRA alone, on bitsandbytes' own 4-bit layers")
    parser.add_argument("--packed", action="store_true", help="methods on packed layers alone")
    parser.add_argument("--plain", action="store_true", help="packed layers by plain torch, without the kernel")
    options = parser.parse_args()
    if options.plain:
        packed_layers.kernel = lambda: None  # type: ignore[assignment]
    began = time.perf_counter()
    config = config_of("llama-7b")
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        "torch": torch.__version__,
        "workspace": workspace(),
        "rates": rates(),
        "rows": [],
    }
    for method, reading, residency in rows():
        if options.bitsandbytes and (method != "qlora" or reading.optimizer != STATELESS):
            continue
        packed = residency is not None and residency.bits < 16
        if options.packed and not packed:
            continue
        kernel = "bitsandbytes" if options.bitsandbytes else "fused" if packed and not options.plain else ""
        if options.methods and method not in options.methods:
            continue
        if options.adapters and (reading.targets, reading.directions) == ("query_value", 1):
            continue
        if time.perf_counter() - began > options.seconds:
            found["rows"].append({"method": method, **asdict(reading), "status": "no time left"})
            continue
        row = measure(method, reading, residency, config, kernel)
        gc.collect()
        torch.cuda.empty_cache()
        found["rows"].append(row)
        peak = f"{row['peak_bytes'] / 2**30:.2f} GiB {row['step_s']:.3f} s" if row["status"] == "ok" else row["status"]
        passed = f"{time.perf_counter() - began:5.0f} s"
        print(passed, method, reading.tokens, reading.optimizer, residency, peak, flush=True)
        options.out.write_text(json.dumps(found, indent=1))
    print(json.dumps({key: value for key, value in found.items() if key != "rows"}))


if __name__ == "__main__":
    main()
