"""7B-shaped blocks on a GPU: time to score, allocate and pack, output error at equal bytes, packed layers' speed.

    PYTHONPATH=src python tests/gpu/quantizer_h200.py [--layers 2] > quantizer_h200.json

Middle blocks of Llama-7B and OPT-6.7B, random weights: Student's t with 5 degrees of freedom (heavier tails than a
normal), scaled to .02, columns of unlike size; inputs with a few outlier channels, as real hidden states have them.
Packed layers are timed as plain torch unpacks them and by the kernel of ``assyllm.quantizer.cuda``, whose values are
compared (``--speed`` alone: a minute). Needs torch and transformers; writes one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from assyllm.blocks.block import Block
from assyllm.blocks.split import empty_block
from assyllm.quantizer import allocate
from assyllm.quantizer import packed as packed_layers
from assyllm.quantizer.calibrate import linears, second_moments
from assyllm.quantizer.compensate import compensated
from assyllm.quantizer.error import output_error
from assyllm.quantizer.packed import PackedLinear
from assyllm.quantizer.planes import nearest, pack
from assyllm.quantizer.scores import scores
from assyllm.quantizer.sizes import matrix_bytes

GROUP, BUDGET = 128, 4.77
EXAMPLES, TOKENS = 16, 128


def config(family: str) -> object:
    """The true shapes."""
    from transformers import LlamaConfig, OPTConfig

    if family == "llama":
        made = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    else:
        made = OPTConfig(hidden_size=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32,
                         word_embed_proj_dim=4096, vocab_size=50272, dropout=0.0)  # fmt: skip
    made._attn_implementation = "sdpa"
    return made


def random_block(family: str, layers: int, device: str) -> Block:
    """A middle block with random weights."""
    block = empty_block(f"{family}-7b", family, (8, 8 + layers), config(family))
    student = torch.distributions.StudentT(torch.tensor(5.0, device=device))
    for module in list(block.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dim() == 2:
                value = 0.02 * student.sample(parameter.shape) / 1.29
                value *= torch.exp(0.3 * torch.randn(parameter.shape[1], device=device))
            elif name == "weight":
                value = 1 + 0.1 * torch.randn(parameter.shape, device=device)
            else:
                value = 0.02 * torch.randn(parameter.shape, device=device)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
    return block.to(device).eval()


def hidden_states(batch: int, tokens: int, device: str) -> tuple[Tensor, Tensor]:
    """Correlated states with outlier channels, and a mask without padding."""
    fixed = torch.Generator().manual_seed(1)
    basis = torch.randn(512, 4096, generator=fixed).to(device) / 512**0.5
    outliers = torch.randperm(4096, generator=fixed)[:8].to(device)
    states = torch.randn(batch, tokens, 512, device=device) @ basis + 0.3 * torch.randn(
        batch, tokens, 4096, device=device
    )
    states[..., outliers] *= 20
    return states, torch.ones(batch, tokens, dtype=torch.bool, device=device)


def timed(work: Callable[[], object], device: str, repeat: int = 1) -> float:
    """Seconds of one call, the best of ``repeat`` readings; where there are several, each of ten calls in a row."""
    best, calls = float("inf"), 10 if repeat > 1 else 1
    for _ in range(repeat):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / calls)
    return best


def packed_copy(block: Block, widths: dict[str, Tensor], moments: dict[str, Tensor] | None) -> dict[str, PackedLinear]:
    """A packed layer for every linear layer, rounded plainly or, with moments, compensated."""
    made = {}
    for path, linear in linears(block).items():
        own = widths[path].to(linear.weight.device)
        rounded = nearest(linear.weight, own, GROUP) if moments is None else compensated(
            linear.weight, own, GROUP, moments[path]
        )  # fmt: skip
        tensors = pack(*rounded, linear.weight, own)
        found, counts = own.unique(return_counts=True)
        layer = PackedLinear(dict(zip(found.tolist(), counts.tolist(), strict=True)), linear.in_features, GROUP,
                             linear.bias is not None, device=own.device)  # fmt: skip
        layer.load_state_dict(tensors | ({} if linear.bias is None else {"bias": linear.bias.half()}))
        made[path] = layer
    return made


class With:
    """The block with some of its layers replaced, for as long as a ``with`` lasts."""

    def __init__(self, block: Block, layers: dict[str, PackedLinear]) -> None:
        self.block, self.layers, self.old = block, layers, linears(block)

    def _put(self, layers: dict) -> None:
        for path, layer in layers.items():
            parent, _, leaf = path.rpartition(".")
            setattr(self.block.get_submodule(parent), leaf, layer)

    def __enter__(self) -> Block:
        self._put(self.layers)
        return self.block

    def __exit__(self, *_: object) -> None:
        self._put(self.old)


def error_of(block: Block, layers: dict[str, PackedLinear], received: list) -> float:
    """Relative output error with the packed layers in place."""

    class Low(nn.Module):
        def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
            with With(block, layers) as low:
                return low(hidden, mask)

    return output_error(block, Low(), received)  # type: ignore[arg-type]


def study(family: str, layers: int, device: str) -> dict:
    """Times and errors of one block."""
    torch.manual_seed(0)
    block = random_block(family, layers, device)
    matrices = linears(block)
    weights = sum(m.weight.numel() for m in matrices.values())
    tuning = [hidden_states(EXAMPLES, TOKENS, device) for _ in range(4)]
    held = [hidden_states(EXAMPLES, TOKENS, device)]
    out: dict = {
        "layers": layers,
        "weights": weights,
        "group_size": GROUP,
        "budget_bits": BUDGET,
        "seconds": {},
        "error": {},
    }
    took = out["seconds"]
    box: dict = {}
    took["score_8_probes"] = timed(
        lambda: box.update(s=scores(block, tuning, ["output"], GROUP, 8, 0)["output"]), device
    )
    took["moments"] = timed(lambda: box.update(m=second_moments(block, tuning)), device)

    def plan(widths: list[int], whole: bool, budget: int) -> dict[str, Tensor]:
        known = {
            path: allocate.Matrix(box["s"][path], allocate.rounding_errors(m.weight, widths, GROUP), m.in_features)
            for path, m in matrices.items()
        }
        return allocate.knapsack(known, widths, GROUP, budget, whole)

    def size(widths: dict[str, Tensor]) -> int:
        total = 0
        for path, rows in widths.items():
            found, counts = rows.unique(return_counts=True)
            total += matrix_bytes(
                dict(zip(found.tolist(), counts.tolist(), strict=True)), matrices[path].in_features, GROUP
            )
        return total

    layerwise = plan([4, 8], True, int(BUDGET * weights / 8))
    budget = size(layerwise)  # every other row of the table gets these bytes
    took["allocate"] = timed(lambda: box.update(w=plan([3, 4, 5, 6, 8, 16], False, budget)), device)
    rows48 = plan([4, 8], False, budget)
    four = {path: torch.full((m.out_features,), 4, dtype=torch.uint8) for path, m in matrices.items()}
    out["bits"] = {"equal": 8 * budget / weights, "mix": 8 * size(box["w"]) / weights, "int4": 8 * size(four) / weights}
    took["pack_nearest"] = timed(lambda: box.update(p=packed_copy(block, box["w"], None)), device)
    took["pack_compensated"] = timed(lambda: box.update(c=packed_copy(block, box["w"], box["m"])), device)
    cases = {
        "int4_nearest": packed_copy(block, four, None),
        "layerwise48_nearest": packed_copy(block, layerwise, None),
        "rows48_nearest": packed_copy(block, rows48, None),
        "mix_nearest": box["p"], "mix_compensated": box["c"],
        "layerwise48_compensated": packed_copy(block, layerwise, box["m"]),
    }  # fmt: skip
    out["error"] = {name: error_of(block, made, held) for name, made in cases.items()}
    out["speed"] = speed(block, box["c"], device)
    one = next(iter(matrices.values()))
    cpu = one.weight.cpu()
    widths = box["w"][next(iter(matrices))]
    took["pack_nearest_cpu_one_4096x4096"] = timed(lambda: pack(*nearest(cpu, widths, GROUP), cpu, widths), "cpu")
    return out


@contextmanager
def plain_torch() -> Iterator[None]:
    """Packed layers without the kernel, for as long as a ``with`` lasts."""
    kernel = packed_layers.kernel
    packed_layers.kernel = lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        packed_layers.kernel = kernel


def fused_speed(layer: PackedLinear, x: Tensor, device: str) -> dict[str, Any]:
    """The same with rows made float by one kernel: milliseconds, and the largest difference of any value."""
    from assyllm.quantizer.cuda import own_rows

    xg = x.clone().requires_grad_()

    def both() -> tuple[Tensor, Tensor]:
        out = layer(xg)
        return out.detach(), torch.autograd.grad(out.float().square().sum(), xg)[0]

    try:
        with plain_torch():
            rows, plain = layer.dense(x.dtype), both()
        pairs = zip((rows, *plain), (own_rows(layer, 0, layer.out_features, x.dtype), *both()), strict=True)
        differences = [float((a - b).abs().max()) for a, b in pairs]
        forward = timed(lambda: layer(x), device, 10)
        backward = timed(lambda: layer(xg).sum().backward(), device, 10)
        made = timed(lambda: own_rows(layer, 0, layer.out_features, x.dtype), device, 10)
        made_plainly = timed(lambda: layer.weight_rows(0, layer.out_features, x.dtype), device, 10)
    except Exception:  # the other measurements are worth more
        return {"fused": traceback.format_exc()[-1500:]}
    return {
        "fused_ms": 1e3 * forward, "fused_backward_ms": 1e3 * backward, "fused_rows_ms": 1e3 * made,
        "packed_rows_ms": 1e3 * made_plainly,
        "fused_differences": dict(zip(("rows", "forward", "backward"), differences, strict=True)),
        "largest_values": dict(zip(("rows", "forward", "backward"), (float(t.abs().max()) for t in (rows, *plain)),
                                   strict=True)),
    }  # fmt: skip


def odd_shapes(device: str) -> str:
    """Whether the kernel makes plain torch's rows, of every width and dtype, and of shapes that fit nothing."""
    from assyllm.quantizer.cuda import own_rows

    for rows, columns, group in ((37, 100, 32), (64, 48, 32), (129, 4096, 128), (300, 1000, 64)):
        weight = 0.02 * torch.randn(rows, columns, device=device)
        widths = torch.tensor([0, 2, 3, 4, 5, 6, 7, 8, 16], dtype=torch.uint8, device=device).repeat(34)[:rows]
        found, counts = widths.unique(return_counts=True)
        sizes = dict(zip(found.tolist(), counts.tolist(), strict=True))
        layer = PackedLinear(sizes, columns, group, bias=False, device=device)
        layer.load_state_dict(pack(*nearest(weight, widths, group), weight, widths))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            if not torch.equal(own_rows(layer, 5, 30, dtype), layer.dense(dtype)[5:30]):
                return f"{rows} x {columns} {dtype}: other rows"
    return "the same rows"


def only_speed(family: str, layers: int, device: str, bits: list[int]) -> dict:
    """Packed layers' times with nothing scored: rows of each of ``bits`` in equal parts, rounded plainly."""
    torch.manual_seed(0)
    block = random_block(family, layers, device)
    found = {}
    for label, each in {f"int{bits[0]}": bits[:1], "mix": bits}.items():
        widths = {
            path: torch.tensor(each, dtype=torch.uint8).repeat(-(-m.out_features // len(each)))[: m.out_features]
            for path, m in linears(block).items()
        }
        found[label] = speed(block, packed_copy(block, widths, None), device)
    return found


def speed(block: Block, layers: dict[str, PackedLinear], device: str) -> dict:
    """Seconds of single layers and ratios, dense bf16 over packed, batch 16 x 128 tokens; peak memory of a forward."""
    found = {}
    paths = list(layers)
    for path in (paths[0], paths[-1]):
        packed, linear = layers[path], linears(block)[path]
        dense = linear.weight.bfloat16()
        x = torch.randn(16, 128, linear.in_features, device=device, dtype=torch.bfloat16)
        xg = x.clone().requires_grad_()
        with plain_torch():
            packed(x), x @ dense.T
            ours, theirs = timed(lambda: packed(x), device, 10), timed(lambda: x @ dense.T, device, 10)  # noqa: B023
            back = timed(lambda: packed(xg).sum().backward(), device, 10)  # noqa: B023
        dense_back = timed(lambda: (xg @ dense.T).sum().backward(), device, 10)  # noqa: B023
        found[path] = {"packed_ms": 1e3 * ours, "bf16_ms": 1e3 * theirs, "dense_over_ours": theirs / ours,
                       "packed_backward_ms": 1e3 * back, "bf16_backward_ms": 1e3 * dense_back}  # fmt: skip
        found[path] |= fused_speed(packed, x, device)
        print(block.family, path, json.dumps(found[path]), file=sys.stderr, flush=True)
        try:
            import bitsandbytes.functional as bnb

            q, state = bnb.quantize_4bit(dense, quant_type="nf4")
            nf4 = timed(lambda: x @ bnb.dequantize_4bit(q, state).T, device, 10)  # noqa: B023
            found[path] |= {"nf4_ms": 1e3 * nf4, "nf4_over_ours": nf4 / ours}
        except ImportError:
            pass
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        x = torch.randn(16, 128, layers[paths[0]].in_features, device=device, dtype=torch.bfloat16)
        with torch.no_grad():
            layers[paths[0]](x)
        found["peak_bytes_of_one_layer_forward"] = torch.cuda.max_memory_allocated() - before
        found["packed_bytes_of_the_block"] = sum(t.nbytes for layer in layers.values() for t in layer.packed().values())
    return found


def main() -> None:
    """Print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--families", nargs="*", default=["llama", "opt"])
    parser.add_argument("--speed", action="store_true", help="packed layers' times alone")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    found: dict[str, Any] = {"device": name}
    if device == "cuda":
        found["odd_shapes"] = odd_shapes(device)
    for family in given.families:
        made = only_speed(family, given.layers, device, [4, 3, 6, 8]) if given.speed else None
        found[family] = made or study(family, given.layers, device)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
