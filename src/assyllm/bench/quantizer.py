"""Forward time of a packed linear layer against bitsandbytes' nf4 and against dense 16-bit weights, on the CPU.

A mixed-precision layer of 4096 x 4096 weights, rows split over 3, 4, 5, 6 and 8 bits (4.5 bits a weight in the
mean), batch 16 x 128 tokens. ``nf4_over_ours_cpu`` and ``dense_over_ours_cpu`` are ratios of times with bfloat16 inputs
where the CPU has bfloat16 instructions, else with float32 ones (all three then compute in float32); above 1 ours is
faster. With bfloat16 nf4 runs on bitsandbytes' repacked eval kernel where the CPU has one, though it gives no
gradient. Further keys: the same in float32, and forward with backward-to-input.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from assyllm.bench.record import Record
from assyllm.quantizer.packed import PackedLinear
from assyllm.quantizer.planes import nearest, pack

ROUNDS = 5
WIDTH, TOKENS, GROUP = 4096, (16, 128), 128
SHARES = {3: 0.15, 4: 0.45, 5: 0.25, 6: 0.1, 8: 0.05}


def packed_layer(weight: Tensor, shares: dict[int, float], group_size: int) -> PackedLinear:
    """A layer whose rows have the widths of ``shares``, dealt out in a fixed pseudo-random order."""
    rows = weight.shape[0]
    counts = [int(share * rows) for share in shares.values()]
    counts[-1] += rows - sum(counts)
    widths = torch.cat([torch.full((n,), b, dtype=torch.uint8) for b, n in zip(shares, counts, strict=True)])
    widths = widths[torch.randperm(rows, generator=torch.Generator().manual_seed(0))]
    packed = pack(*nearest(weight, widths, group_size), weight, widths)
    layer = PackedLinear(dict(zip(shares, counts, strict=True)), weight.shape[1], group_size, bias=False)
    layer.load_state_dict(packed)
    return layer.eval()


def nf4_layer(weight: Tensor, dtype: torch.dtype) -> nn.Module:
    """bitsandbytes' layer on the same weights; its kernel for bfloat16 where that is the dtype."""
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=False, compute_dtype=dtype, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu").eval()
    if dtype == torch.float32:  # the kernel computes in bfloat16 and gives no gradient
        layer.support_avx512bf16_for_cpu = False
    return layer


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def run(rounds: int = ROUNDS) -> Record:
    """Time every layer once a round, interleaved; ratios are taken inside a round."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(WIDTH, WIDTH, generator=draw)
    x = torch.randn(*TOKENS, WIDTH, generator=draw)
    ours = packed_layer(weight, SHARES, GROUP)
    half = weight.bfloat16()
    fast = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()
    inputs = {"bf16": x.bfloat16(), "fp32": x} if fast else {"fp32": x}
    nf4 = {name: nf4_layer(weight, given.dtype) for name, given in inputs.items()}
    wants = x.clone().requires_grad_()

    def back(layer: Callable[[Tensor], Tensor]) -> None:
        layer(wants).sum().backward()

    def dense(given: Tensor) -> Tensor:
        return given @ half.to(given.dtype).T

    works: dict[str, Callable[[], object]] = {
        "ours/backward": partial(back, ours),
        "dense/backward": partial(back, dense),
    }
    for name, given in inputs.items():
        works[f"ours/{name}"] = partial(ours, given)
        works[f"nf4/{name}"] = partial(nf4[name], given)
        works[f"dense/{name}"] = partial(dense, given)
    found = []
    for number in range(rounds + 1):
        took = {}
        for name, work in works.items():
            with torch.set_grad_enabled(name.endswith("backward")):
                took[name] = seconds(work)
        if number == 0:  # the first calls pay for packing and caches
            continue
        main = "bf16" if "bf16" in inputs else "fp32"
        row = {f"{other}_over_ours_cpu": took[f"{other}/{main}"] / took[f"ours/{main}"] for other in ("nf4", "dense")}
        row |= {f"{o}_over_ours_cpu_fp32": took[f"{o}/fp32"] / took["ours/fp32"] for o in ("nf4", "dense")}
        row["dense_over_ours_cpu_backward"] = took["dense/backward"] / took["ours/backward"]
        found.append(row)
    return Record.of("quantizer", found)
