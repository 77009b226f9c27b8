"""The pipeline at the paper's five shapes with random weights, end to end on one GPU, as JSON.

    PYTHONPATH=src python tests/gpu/random_zoo_h200.py --keep /tmp/random --out random_zoo.json      (about 8 minutes)

A pool under ``--keep`` is taken as it is; else it is made.

For each model: random weights into shards, split, quantized to INT4 (groups of 128, tables INT8), the 16-bit files
deleted as soon as they have been read (about 45 GB of disk at once). Then, with every block in GPU memory and with
budgets of 8 and 4 GB through the swapper (1 GB of each kept for activations): a pass of all models over public
rows, a survey of all blocks (``federated.surveying``, the rule of ``assyllm``) with the server's choice among all sets
of eight, an adapter fitted for every candidate on the chain of Llama's first block, and one selection round by what a
candidate adds to a head on the labels (``federated.probing``); survey and round with 20 clients together as the
simulator does it, and with one client alone as a device would. Peaks stand beside the cost model's, bytes read beside
the least that any schedule reads. Adapters and the server's evidence are solved on the GPU in float64.
Needs torch, transformers, accelerate, pydantic.
``--tiny`` runs the same on a CPU at toy width.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assyllm.adapter.linear import LinearAdapter, LinearSums
from assyllm.artifacts import output_folder, read_json
from assyllm.assembly import depths
from assyllm.assembly.head import HeadSums, sketched
from assyllm.blocks.pool import Pool, write_model, write_pool
from assyllm.comparator import compatibility as by
from assyllm.cost.point import measure_point
from assyllm.cost.selection import Residency
from assyllm.cost.shapes import CONFIGS
from assyllm.cost.step import WORKSPACE, Reading
from assyllm.federated.messages import ProbeTask, SurveyTask
from assyllm.federated.probing import probe_step
from assyllm.federated.secure_sum import secure_sum
from assyllm.federated.surveying import survey_step
from assyllm.params import Blocks, Quantize, read_yaml
from assyllm.quantizer import packed as packed_layers
from assyllm.quantizer.packed import PackedEmbedding
from assyllm.quantizer.pool import prepare, quantize_pool
from assyllm.swapper.ablation import optimum_bytes
from assyllm.swapper.swapper import Swapper
from assyllm.zoo.cards import ModelCard, write_card
from assyllm.zoo.encoding import combine
from assyllm.zoo.random import write_random

ROOT = Path(__file__).resolve().parents[2]
GB = 1e9
ORDER = ("llama-7b", "bert-base", "roberta-large", "opt-6.7b", "vicuna-7b")
GROUP, BITS = 128, 4
CLIENTS, QUESTIONS, CHOICES, TOKENS = 20, 8, 2, 256  # 16 rows of 256 tokens a client, as the paper's batch
PUBLIC = 128  # rows of public text
THREADS = 4  # a machine's cores may be shared, and a matrix of 256 columns gains nothing from more
SURVEY, MOST = 64, 8  # numbers a block in a survey, blocks that a chain takes
SKETCH, GRID, RIDGE = 256, (0.001, 0.01, 0.1, 1.0, 10.0), 0.01
RESERVE = 1e9  # of a budget, for activations
TINY = {"hidden_size": 64, "intermediate_size": 128, "ffn_dim": 128, "word_embed_proj_dim": 64, "vocab_size": 500,
        "num_attention_heads": 4}  # fmt: skip

began = time.perf_counter()


def say(*words: object) -> None:
    """A line with the seconds since the start."""
    print(f"{time.perf_counter() - began:6.1f} s", *words, flush=True)


def config_for(model: str, tiny: bool) -> dict[str, Any]:
    """The recorded hub config, or one of its family at toy width."""
    config = dict(CONFIGS[model])
    if tiny:
        config |= {key: value for key, value in TINY.items() if key in config}
        config["num_hidden_layers"] = {32: 6, 24: 6, 12: 4}[config["num_hidden_layers"]]
    return config


def make(model: str, keep: Path, device: str, tiny: bool) -> dict[str, Any]:
    """One model from nothing to INT4 blocks; seconds and bytes of each step."""
    hub, row = config_for(model, tiny), {"model": model}
    name, member, whole = model.split("-")[0], keep / "member", keep / "pool16"
    if (keep / "pool").is_dir() or (keep / "int4" / name / "manifest.json").is_file():
        return row | {"status": "made before"}

    def step(label: str, work: Any, folder: Path) -> None:
        start = time.perf_counter()
        work()
        row[f"{label}_s"] = time.perf_counter() - start
        row[f"{label}_bytes"] = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))

    def draw() -> None:
        with output_folder(member) as out:
            weights = write_random(hub, out, "gpu", model, device=device)
            card = ModelCard(name=name, family=hub["model_type"], stands_for=model, source="random", origin=model,
                             licence="Apache-2.0", parameters=weights, weights_sha256="")  # fmt: skip
            write_card(out, card)
            row["parameters"] = weights

    def cut() -> None:
        with output_folder(whole) as out:
            blocks = Blocks(edge_to_middle=2.0, blocks_per_model=None)
            write_pool(out, {name: write_model(out, name, hub["model_type"], member, blocks)})

    def round_off() -> None:
        values = read_yaml(ROOT / "params.yaml")["quantize"]
        settings = {"scheme": "uniform", "bits": BITS, "rounding": "nearest", "group_size": GROUP}
        quantize_pool(whole, keep / "int4" / name, Quantize(**values | settings), device=device)

    step("random", draw, member)
    step("split", cut, whole)
    shutil.rmtree(member)
    step("quantize", round_off, keep / "int4" / name)
    shutil.rmtree(whole)
    say(json.dumps(row))
    return row


def gather(keep: Path) -> Path:
    """The models' pools as one, unless a run before this one has put them together."""
    if (keep / "pool").is_dir():
        return keep / "pool"
    with output_folder(keep / "pool") as out:
        models: dict[str, Any] = {}
        for part in sorted((keep / "int4").iterdir()):
            models |= read_json(part / "pool.json")["models"]
            for folder in ("blocks", "models"):
                shutil.copytree(part / folder, out / folder, dirs_exist_ok=True, copy_function=shutil.move)
        write_pool(out, models)
    shutil.rmtree(keep / "int4")
    return keep / "pool"


@dataclass
class Batch:
    """Rows of one client: random tokens for every vocabulary, and where the choice stands."""

    ids: dict[str, Tensor]  # model -> [rows, T]
    mask: Tensor
    pools: Tensor  # [rows, 2, T]


def batch(pool: Pool, seed: int, rows: int, device: str) -> Batch:
    """Random rows; the first is a token shorter, so that a mask is needed."""
    draws = torch.Generator().manual_seed(seed)
    ids = {m: torch.randint(10, pool.config(m).vocab_size, (rows, TOKENS), generator=draws) for m in pool.models}
    mask = torch.ones(rows, TOKENS, dtype=torch.bool)
    mask[0, -1] = False
    pools = torch.zeros(rows, 2, TOKENS)
    pools[:, 0, TOKENS * 3 // 4] = 1
    pools[:, 1, TOKENS * 3 // 4 + 1 : -1] = 1 / (TOKENS - TOKENS * 3 // 4 - 2)
    return Batch({m: t.to(device) for m, t in ids.items()}, mask.to(device), pools.to(device))


def vectors(states: list[Tensor], batches: list[Batch]) -> list[Tensor]:
    """Pooled states [rows, 2, d] of each batch, on the CPU."""
    return [(b.pools.to(s.dtype) @ s).float().cpu() for s, b in zip(states, batches, strict=True)]


class View:
    """What :func:`probe_step` and :func:`survey_step` ask of a client's data."""

    def __init__(self, features: dict[str, Tensor], seed: int) -> None:
        self.features = features  # block -> [N, C, F]
        draws = torch.Generator().manual_seed(seed)
        self.answer = torch.randint(CHOICES, (QUESTIONS,), generator=draws)
        self.choice_mask = torch.ones(QUESTIONS, CHOICES, dtype=torch.bool)

    def explained(self, chain: tuple[str, ...], head: Tensor) -> Tensor:
        """Scores [N, C] of the chain's head."""
        return self.features[chain[-1]] @ head

    def candidate(self, chain: tuple[str, ...], block: str) -> Tensor:
        """Features [N, C, F] of a candidate's output."""
        return self.features[block]

    def surveyed(self, models: tuple[tuple[str, ...], ...], dims: int) -> Tensor:
        """Features [N, C, F] of all blocks side by side."""
        return torch.cat([self.features[block] for blocks in models for block in blocks], dim=-1)


class Device:
    """The pool on one device under a budget of weights, and what a search computes there."""

    def __init__(self, pool: Pool, budget: float, device: str, host: str) -> None:
        self.pool, self.device = pool, device
        self.swapper = Swapper(pool, int(budget), (), device=device, host=host, record=False)
        self.half = device == "cuda"
        self.asked: list[str] = []  # units, in the order of the walks so far
        for block in pool.ids if self.half else ():
            for module in self.swapper.block(block).embed.modules():
                if isinstance(module, PackedEmbedding):  # it gives float32; what follows is stored in 16 bit
                    module.register_forward_hook(lambda module, given, out: out.half())

    def plan(self, blocks: list[str]) -> None:
        """Say what will run next."""
        self.swapper.extend(blocks)
        self.asked += self.swapper.accesses(blocks)

    def run(self, block: str, states: list[Tensor], batches: list[Batch]) -> list[Tensor]:
        """A block over all batches, layer by layer."""
        pairs = zip(states, batches, strict=True)
        with torch.no_grad():
            return self.swapper.block(block).each([(hidden, b.mask) for hidden, b in pairs])

    def native(self, public: Batch) -> dict[str, Tensor]:
        """Every block's pooled output [rows * 2, d] inside its own model."""
        found = {}
        self.plan(self.pool.ids)
        for model in self.pool.models:
            states = [public.ids[model]]
            for info in self.pool.of_model(model):
                states = self.run(info.id, states, [public])
                found[info.id] = vectors(states, [public])[0].flatten(0, 1)
        return found

    def survey(self, batches: list[Batch]) -> dict[str, list[Tensor]]:
        """Every block's features [N, C, F] inside its own model, a list entry a client."""
        found = {}
        self.plan(self.pool.ids)
        for model in self.pool.models:
            states = [b.ids[model] for b in batches]
            for info in self.pool.of_model(model):
                states = self.run(info.id, states, batches)
                parts = [combine(v.unflatten(0, (QUESTIONS, CHOICES))) for v in vectors(states, batches)]
                found[info.id] = [sketched(part, SURVEY, info.id) for part in parts]
        return found

    def round(
        self, task: ProbeTask, batches: list[Batch], adapters: dict[str, LinearAdapter]
    ) -> tuple[dict[str, list[Tensor]], dict[str, float]]:
        """Features of the chain and of every candidate, a list entry a client; seconds of each block."""
        ((chain, candidates),) = task.candidates.items()
        self.plan([*chain, *candidates])
        model = self.pool.info(chain[0]).model
        states = [b.ids[model] for b in batches]
        features, seconds = {}, {}
        for block in (*chain, *candidates):
            start = time.perf_counter()
            given = states
            if (adapter := adapters.get(block)) is not None:
                weight, bias = adapter.weight.to(self.device), adapter.bias.to(self.device)
                given = [s @ weight + bias for s in states]
                del weight, bias
            out = self.run(block, given, batches)
            if block in chain:
                states = out
            parts = [combine(v.unflatten(0, (QUESTIONS, CHOICES))) for v in vectors(out, batches)]
            features[block] = [sketched(part, SKETCH, block) for part in parts]
            del given, out
            seconds[block] = time.perf_counter() - start
        return features, seconds


def fitted(x: Tensor, y: Tensor, device: str) -> LinearAdapter:
    """The adapter from rows [n, d] to [n, e], solved in float64 on the device; kept on the CPU as it will compute."""
    with torch.device(device):
        made = LinearSums.of(x.to(device), y.to(device)).fit(RIDGE)
    return made.to(dtype=torch.float16 if device == "cuda" else torch.float32).cpu()


def evidence(sums: HeadSums, device: str) -> float:
    """Nats a row that features tell; solved on the device, in float64."""
    return HeadSums(*(part.to(device) for part in sums.parts())).evidence(GRID)[0]


def peak(device: str, reset: bool = False) -> int:
    """Most bytes allocated on the GPU since the last reset."""
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    if reset:
        gc.collect()
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()  # counted with what computes
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return torch.cuda.max_memory_allocated()


def search(
    folder: Path, budget_gb: float | None, device: str, host: str, predicted: dict[str, float],
    adapters: dict[str, LinearAdapter], cohorts: list[int], one_a_width: bool,
) -> dict[str, Any]:  # fmt: skip
    """Native pass, adapters (fitted once) and one round, of 20 clients and of one, under a budget of GPU memory."""
    start = time.perf_counter()
    pool = Pool(folder, prepare)  # its files were hashed when they were written
    budget = 1.05 * pool.bytes if budget_gb is None else budget_gb * GB - RESERVE
    at = Device(pool, budget, device, host)
    row: dict[str, Any] = {"budget_gb": budget_gb, "host": host, "pool_bytes": pool.bytes, "blocks": len(pool.ids)}
    row["open_s"] = time.perf_counter() - start
    try:
        row |= _searched(at, budget_gb, device, predicted, adapters, cohorts, one_a_width)
        least = optimum_bytes(at.asked, at.swapper.engine.sizes, int(budget))
        row |= {"bytes_read": at.swapper.bytes_read, "least_bytes": least,
                "reads_over_least": at.swapper.bytes_read / least}  # fmt: skip
        say(budget_gb, "GB: read", at.swapper.bytes_read, "over the least", row["reads_over_least"])
    finally:
        at.swapper.close()
        del at
        gc.collect()
    return row


def _searched(
    at: Device, budget_gb: float | None, device: str, predicted: dict[str, float],
    adapters: dict[str, LinearAdapter], cohorts: list[int], one_a_width: bool,
) -> dict[str, Any]:  # fmt: skip
    pool, row = at.pool, {}
    public = batch(pool, 999, PUBLIC, device)
    start = time.perf_counter()
    native = at.native(public)
    row |= {"native_s": time.perf_counter() - start, "native_bytes_read": at.swapper.bytes_read}
    for clients in cohorts:
        row[f"survey_{clients}"] = _surveyed(at, budget_gb, device, clients)
        say(budget_gb, json.dumps(row[f"survey_{clients}"]))
    chain = (next(b for b in pool.ids if pool.info(b).kind == "start" and pool.info(b).model == "llama"),)
    candidates = tuple(by.eligible(pool, chain, by.rule("probe")))
    start = time.perf_counter()
    fits = [0.0]
    for block in candidates:
        before = pool.before(block)
        if before == chain[-1] or block in adapters:
            continue
        one, widths = time.perf_counter(), (pool.info(chain[-1]).width, pool.info(block).width)
        alike = next((a for a in adapters.values() if one_a_width and a.weight.shape == widths), None)
        if alike is not None:
            adapters[block] = alike
            continue
        adapters[block] = fitted(native[chain[-1]], native[before], device)  # type: ignore[index]
        fits.append(time.perf_counter() - one)
    row |= {"adapters_s": time.perf_counter() - start, "adapter_fits": len(fits) - 1, "adapter_fit_s": max(fits)}
    del public
    for clients in cohorts:
        batches = [batch(pool, c, QUESTIONS * CHOICES, device) for c in range(clients)]
        head = torch.zeros(min(SKETCH, 2 * pool.info(chain[0]).width))
        task = ProbeTask(0, {chain: candidates}, {"+".join(chain): head}, 0)
        held = peak(device, reset=True) - at.swapper.engine.resident_bytes
        read = at.swapper.bytes_read
        start = time.perf_counter()
        features, seconds = at.round(task, batches, adapters)
        computed = time.perf_counter() - start
        views = [View({b: parts[c] for b, parts in features.items()}, c) for c in range(clients)]
        replies = [(c, probe_step(task, view)) for c, view in enumerate(views)]  # type: ignore[arg-type]
        totals, refused = secure_sum(replies)
        scores = {block: evidence(totals["+".join(chain), block], device) for block in candidates}
        whole = time.perf_counter() - start
        measured = peak(device)
        weights = at.swapper.peak_bytes
        # a batch's states: what the block was given, and those before and after a layer; and the chain's end
        layer = predicted["temporary"] + predicted["states"] * (3 * (clients - 1) + clients)
        # an end block's norm holds one list more (all batches pass a layer first), its sums in float32, and masks
        norm = WORKSPACE + predicted["states"] * (5 * clients + 3) + clients * QUESTIONS * CHOICES * TOKENS**2
        ours = weights + max(layer, norm)
        row[f"round_{clients}"] = {
            "clients": clients, "candidates": len(candidates), "refused": refused, "best": by.best(scores, 3),
            "seconds": whole, "walk_s": computed, "s_per_client_and_candidate": whole / clients / len(candidates),
            "bytes_read": at.swapper.bytes_read - read,
            "bytes_up_a_client": sum(sums.bytes for sums in replies[0][1].values()),
            "weights_peak_bytes": weights, "held_bytes": held, "peak_bytes": measured,
            "predicted_peak_bytes": ours + held, "within_budget": budget_gb is None or measured <= budget_gb * GB,
            "error_percent": 100 * ((ours + held) / measured - 1) if measured else None,
            "seconds_by_block": seconds,
        }  # fmt: skip
        brief = {k: v for k, v in row[f"round_{clients}"].items() if k != "seconds_by_block"}
        say(budget_gb, json.dumps(brief))
        del batches, features
    return row


def _surveyed(at: Device, budget_gb: float | None, device: str, clients: int) -> dict[str, Any]:
    """One round of a survey, and the server's choice from its total."""
    pool, batches = at.pool, [batch(at.pool, c, QUESTIONS * CHOICES, device) for c in range(clients)]
    models = tuple(tuple(info.id for info in pool.of_model(model)) for model in pool.models)
    task = SurveyTask(0, models, SURVEY)
    peak(device, reset=True)
    read, start = at.swapper.bytes_read, time.perf_counter()
    features = at.survey(batches)
    walked = time.perf_counter() - start
    views = [View({b: parts[c] for b, parts in features.items()}, c) for c in range(clients)]
    replies = [(c, {"survey": survey_step(task, view)}) for c, view in enumerate(views)]  # type: ignore[arg-type]
    totals, refused = secure_sum(replies)
    whole, measured = time.perf_counter() - start, peak(device)
    sizes = [features[block][0].shape[-1] for blocks in models for block in blocks]
    columns = dict(zip((b for blocks in models for b in blocks), torch.arange(sum(sizes)).split(sizes), strict=True))

    def worth(found: depths.Depths) -> float:
        index = torch.cat([columns[b] for blocks, n in zip(models, found, strict=True) for b in blocks[:n]])
        return evidence(totals["survey"].of_columns(index), device)

    start = time.perf_counter()
    chosen = depths.best([len(blocks) for blocks in models], MOST, worth)
    return {
        "clients": clients, "features": sum(sizes), "refused": refused, "chosen": chosen, "seconds": whole,
        "walk_s": walked, "s_per_client": whole / clients, "choice_s": time.perf_counter() - start,
        "bytes_read": at.swapper.bytes_read - read, "bytes_up_a_client": replies[0][1]["survey"].bytes,
        "bytes_down_a_client": task.bytes, "weights_peak_bytes": at.swapper.peak_bytes, "peak_bytes": measured,
        "within_budget": budget_gb is None or measured <= budget_gb * GB,
    }  # fmt: skip


def prediction(tiny: bool) -> dict[str, float]:
    """The cost model's bytes beside the weights for a client's 16 rows of 256 tokens: the largest of the shapes."""
    reading = Reading(batch=QUESTIONS * CHOICES, tokens=TOKENS)
    found = {}
    for model in ("llama-7b", "opt-6.7b"):
        config = config_for(model, tiny)
        at = Residency(layers=1, resident=2, bits=BITS + 16 / GROUP, group_size=GROUP)
        point = measure_point("assyllm_paper", config, reading, at, deep=False)
        kept = {name: size for name, size in point.peak.items() if name != "parameters"}
        found[model] = sum(kept.values()) + point.workspace
        say("cost model", model, json.dumps(point.peak), point.workspace)
    states = QUESTIONS * CHOICES * TOKENS * config_for("llama-7b", tiny)["hidden_size"] * 2
    return {"temporary": max(found.values()), "states": float(states)}


def main() -> None:
    """Make, search under three budgets, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, required=True, help="45 GB of disk")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=500, help="nothing long is begun after this")
    parser.add_argument("--host", default="disk", choices=("disk", "ram"), help="where the swapper reads from")
    parser.add_argument("--budgets", nargs="*", default=["all", "8", "4"], help="GB of GPU memory; all: no limit")
    parser.add_argument("--cohorts", type=int, nargs="*", default=[CLIENTS, 1], help="clients of a round")
    parser.add_argument("--one-adapter-a-width", action="store_true", help="fit one for each pair of widths only")
    parser.add_argument("--plain", action="store_true", help="packed layers by plain torch, without the kernel")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.plain:
        packed_layers.kernel = lambda: None  # type: ignore[assignment]
    device = "cuda" if torch.cuda.is_available() and not options.tiny else "cpu"
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    options.keep.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__,
        "disk_free_bytes": shutil.disk_usage(options.keep).free, "plain": options.plain, "models": [], "searches": [],
    }  # fmt: skip
    say(found)

    def save() -> None:
        found["seconds"] = time.perf_counter() - began
        options.out.write_text(json.dumps(found, indent=1))

    try:
        found["predicted"] = prediction(options.tiny)
    except Exception:  # the measurements are worth more: the sum can be made afterwards
        say(traceback.format_exc()[-2000:])
        found["predicted"] = {"temporary": float("nan"), "states": float("nan")}
    adapters: dict[str, LinearAdapter] = {}
    for model in ORDER:
        if time.perf_counter() - began > 0.6 * options.seconds:
            found["models"].append({"model": model, "status": "no time left"})
            continue
        found["models"].append(make(model, options.keep, device, options.tiny))
        save()
    start = time.perf_counter()
    folder = gather(options.keep)
    found["gather_s"] = time.perf_counter() - start
    budgets = [None if name == "all" or options.tiny else float(name) for name in options.budgets]
    for budget in budgets:
        try:
            if time.perf_counter() - began > options.seconds:
                raise TimeoutError("no time left")
            how = (options.host, found["predicted"], adapters, options.cohorts, options.one_adapter_a_width)
            found["searches"].append(search(folder, budget, device, *how))
        except Exception as error:  # one budget's failure must not cost the others their slot
            found["searches"].append({"budget_gb": budget, "status": f"{type(error).__name__}: {error}",
                                      "trace": traceback.format_exc()[-2000:]})  # fmt: skip
            say(found["searches"][-1]["trace"])
        save()
    say("done", options.out)


if __name__ == "__main__":
    main()
