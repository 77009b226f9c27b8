"""A Llama-7B-shaped pool under 4, 8 and 16 GB of GPU memory: time over max(compute, PCIe), measured peak, same bits.

Run from the repository's root on a machine with a GPU (about 14 GB of disk, 40 GB of host memory, two minutes)::

    PYTHONPATH=src python tests/gpu/swapper_h200.py [--layers 32] [--folder /tmp] > swapper_gpu.json

Needs torch, numpy and safetensors; transformers and accelerate for the last check only.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from assyllm.swapper.engine import Engine
from assyllm.swapper.memory import CudaMemory, Unit
from assyllm.swapper.reader import Reader
from assyllm.zoo.header import header

WIDTH, INNER, HEADS = 4096, 11008, 32
RESERVE = 1_000_000_000  # of a budget for activations and the libraries' workspace
GB = 1_000_000_000
PASSES = 4


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def write_pool(folder: Path, layers: int) -> list[Unit]:
    """Random weights of the seven matrices and two norms of each layer, one file a layer."""
    shapes = {name: (WIDTH, WIDTH) for name in ("q", "k", "v", "o")}
    shapes |= {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}
    units = []
    for i in range(layers):
        draws = torch.Generator("cuda").manual_seed(i)
        tensors = {
            name: (torch.randn(shape, generator=draws, device="cuda") * 0.02).bfloat16().cpu()
            for name, shape in shapes.items()
        }
        tensors |= {name: torch.ones(WIDTH, dtype=torch.bfloat16) for name in ("norm1", "norm2")}
        file = folder / f"layer{i}.safetensors"
        save_file(tensors, file)
        units.append(Unit(f"llama/{i}", header(file)))
    torch.cuda.empty_cache()
    return units


@torch.no_grad()
def layer(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A Llama layer without rotary embedding, ``[B, T, d]`` to ``[B, T, d]``."""
    batch, length, _ = x.shape
    h = rms_norm(x, (WIDTH,), w["norm1"])
    q, k, v = ((h @ w[n].T).view(batch, length, HEADS, -1).transpose(1, 2) for n in ("q", "k", "v"))
    h = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, WIDTH)
    x = x + h @ w["o"].T
    h = rms_norm(x, (WIDTH,), w["norm2"])
    return x + (silu(h @ w["gate"].T) * (h @ w["up"].T)) @ w["down"].T


def timed(body) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    body()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def tokens(batch: int, length: int) -> torch.Tensor:
    draws = torch.Generator("cuda").manual_seed(0)
    return torch.randn(batch, length, WIDTH, generator=draws, device="cuda").bfloat16()


def resident(units: list[Unit], batch: int, length: int) -> tuple[float, torch.Tensor]:
    """Seconds of one pass with everything on the GPU, and the states after PASSES passes."""
    weights = [{n: t.cuda() for n, t in PINNED[unit.id].items()} for unit in units]

    def forward(x: torch.Tensor) -> torch.Tensor:
        for w in weights:
            x = layer(w, x)
        return rms_norm(x, (WIDTH,))

    x = tokens(batch, length)
    for _ in range(2):
        forward(x)
    seconds = sorted(timed(lambda: forward(x)) for _ in range(3))[1]
    for _ in range(PASSES):
        x = forward(x)
    weights.clear()
    gc.collect()
    torch.cuda.empty_cache()
    return seconds, x.cpu()


def pcie(units: list[Unit]) -> float:
    """Bytes a second from pinned host memory to the GPU, the layers copied one after the other."""
    into = {n: torch.empty_like(t, device="cuda") for n, t in PINNED[units[0].id].items()}
    some = units[: min(16, len(units))]

    def copy() -> None:
        for unit in some:
            for name, tensor in PINNED[unit.id].items():
                into[name].copy_(tensor, non_blocking=True)

    timed(copy)
    size = sum(e.bytes for unit in some for e in unit.tensors.values())
    return size / sorted(timed(copy) for _ in range(3))[1]


def swapped(units: list[Unit], place: CudaMemory, budget: int, batch: int, length: int, setting: dict) -> dict:
    """PASSES passes under a budget of GPU memory, all of it counted."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    plan = [unit.id for _ in range(PASSES) for unit in units]
    reader = Reader({e.file for unit in units for e in unit.tensors.values()})
    torch.cuda.synchronize()
    engine = Engine(units, place, reader, budget - RESERVE, plan, **setting)
    x = tokens(batch, length)
    for i, unit in enumerate(plan):
        x = layer(engine.use(unit), x)
        if not engine.preload:
            torch.cuda.synchronize()  # launches run ahead of the GPU: without this, reads on demand overlap too
        if (i + 1) % len(units) == 0:
            x = rms_norm(x, (WIDTH,))
    engine.finish()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - engine.started
    found = {
        "seconds": seconds,
        "loaded_bytes": sum(e.bytes for e in engine.events if e.kind == "load"),
        "peak_weights_bytes": engine.peak_bytes,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "states": x.cpu(),
    }
    engine.close()
    torch.cuda.synchronize()
    return found


def check_model(folder: Path) -> bool | str:
    """A small transformers Llama under a budget on the GPU gives the bits of the whole one."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM

        from assyllm.swapper.models import under_budget
    except ImportError as error:
        return f"skipped: {error}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "model")
    whole = LlamaForCausalLM.from_pretrained(folder / "model", dtype="auto").eval().cuda()
    ids = torch.randint(0, 1000, (2, 33), device="cuda")
    same = True
    with torch.no_grad():
        for host in ("disk", "ram"):
            with under_budget(folder / "model", 16_000_000, device="cuda", host=host) as model:
                for _ in range(3):
                    same &= torch.equal(model(ids).logits, whole(ids).logits)
                same &= model.swapper.peak_bytes <= 16_000_000
    return same


PINNED: dict[str, dict[str, torch.Tensor]] = {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, began = Path(name), time.time()
        units = write_pool(folder, options.layers)
        say(f"written {time.time() - began:.0f} s")
        reader = Reader({e.file for unit in units for e in unit.tensors.values()})
        direct = reader.direct
        place = CudaMemory(torch.device("cuda"), units, reader, host="ram")
        read_rate = reader.bytes_read / (time.time() - began)
        reader.close()
        PINNED.update(place._pinned)
        say(f"pinned {time.time() - began:.0f} s")
        rate = pcie(units)
        total = sum(e.bytes for unit in units for e in unit.tensors.values())
        one_layer = sum(e.bytes for e in units[0].tensors.values())
        batch = 16
        seconds, _ = resident(units, batch, 256)
        length = max(16, round(256 * (total / rate) / seconds / 8) * 8)  # computing about as long as copying
        rows = []
        for case, (b, t) in {"16x256": (batch, 256), "balanced": (batch, min(length, 2048))}.items():
            compute, expected = resident(units, b, t)
            for budget in (4, 8, 16):
                for pipeline, setting in (
                    ("preload+preswap", {}),
                    ("no overlap", {"preload": False, "preswap": False}),
                ):
                    if pipeline == "no overlap" and budget != 4:
                        continue
                    runs = [swapped(units, place, budget * GB, b, t, setting) for _ in range(2)]
                    best = min(runs, key=lambda run: run["seconds"])
                    limit = max(PASSES * compute, best["loaded_bytes"] / rate)
                    rows.append(
                        {
                            "case": case, "batch": b, "tokens": t, "budget_gb": budget, "pipeline": pipeline,
                            "seconds": best["seconds"], "compute_seconds": PASSES * compute,
                            "copy_seconds": best["loaded_bytes"] / rate, "over_limit": best["seconds"] / limit,
                            "loaded_gb": best["loaded_bytes"] / GB, "peak_weights_gb": best["peak_weights_bytes"] / GB,
                            "peak_allocated_gb": best["peak_allocated_bytes"] / GB,
                            "peak_reserved_gb": best["peak_reserved_bytes"] / GB,
                            "within_budget": max(r["peak_allocated_bytes"] for r in runs) <= budget * GB,
                            "same_bits": all(torch.equal(r["states"], expected) for r in runs),
                        }
                    )  # fmt: skip
                    say(json.dumps(rows[-1]))
        PINNED.clear()
        del place
        gc.collect()
        few = units[:8]
        reader = Reader({e.file for unit in few for e in unit.tensors.values()})
        disk = CudaMemory(torch.device("cuda"), few, reader, host="disk")
        from_disk = swapped(few, disk, 4 * GB, batch, 256, {})
        reader.close()
        print(
            json.dumps(
                {
                    "device": torch.cuda.get_device_name(), "layers": options.layers, "passes": PASSES,
                    "layer_bytes": one_layer, "pool_bytes": total, "pcie_gb_per_s": rate / GB, "direct": direct,
                    "rows": rows, "read_and_pin_gb_per_s": read_rate / GB,
                    "from_disk_gb_per_s": from_disk["loaded_bytes"] / from_disk["seconds"] / GB,
                    "transformers_same_bits": check_model(folder), "seconds": time.time() - began,
                },
                indent=1,
            )
        )  # fmt: skip


if __name__ == "__main__":
    main()
