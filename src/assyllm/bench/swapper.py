"""``assyllm bench swapper``: the Block Swapper against its limits, against no overlap and against accelerate.

A Llama-shaped model of random weights is written to disk and run under a budget of two layers. Every round runs all
contenders, in rotating order, cold: O_DIRECT where the file system has it, else pages dropped before each pass. The
limit is max(compute, I/O) of the same round: the resident model's pass, and reading all bytes without computing.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from assyllm.artifacts import ArtifactError
from assyllm.bench.record import Record
from assyllm.results import read_table
from assyllm.swapper.ablation import optimum_bytes
from assyllm.swapper.memory import HostMemory
from assyllm.swapper.models import under_budget
from assyllm.swapper.plan import count, needed_bytes
from assyllm.swapper.reader import Reader
from assyllm.swapper.walks import read_walk, units_of, walk

LAYERS, WIDTH, INNER = 24, 1024, 2752  # 24 layers of 51 MB in float32
# the default search's walk and its pool's units, frozen: the benchmark measures the swapper, not the search
WALK, SIZES = Path(__file__).parent / "walk.csv", Path(__file__).parent / "units.csv"


def run(rounds: int | None = None, layers: int = LAYERS, width: int = WIDTH, inner: int = INNER) -> Record:
    """All ratios of the benchmark, one set a round."""
    torch.set_num_threads(1)
    reads = read_ratios()
    with tempfile.TemporaryDirectory(prefix="assyllm-bench-", dir=os.environ.get("TMPDIR", ".")) as folder:
        timer = Timer(Path(folder), layers, width, inner)
        found = [timer.round(turn) | reads for turn in range(rounds or 2)]
    return Record.of("swapper", found)


class Timer:
    """The contenders on one model."""

    def __init__(self, folder: Path, layers: int, width: int, inner: int) -> None:
        from accelerate import disk_offload
        from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=512, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=width // 64, tie_word_embeddings=False,
        )  # fmt: skip
        torch.manual_seed(0)
        self.folder = folder / "model"
        whole = LlamaForCausalLM(config).eval().requires_grad_(False)
        whole.save_pretrained(self.folder)
        self.whole: Any = whole
        _settle(folder)
        self.offloaded = AutoModelForCausalLM.from_pretrained(self.folder, dtype="auto").eval()
        disk_offload(self.offloaded, offload_dir=str(folder / "offload"), execution_device=torch.device("cpu"))
        self.offload = folder / "offload"
        _settle(folder)
        with under_budget(self.folder, 10**12, preload=False) as model:
            self.sizes = dict(model.swapper.sizes)
            self.units = list(model.swapper.units.values())
        self.bytes = sum(extent.end - extent.start for unit in self.units for extent in unit.extents)
        # the two largest, and what stands before and after the layers
        self.budget = needed_bytes(self.sizes) + sum(sorted(self.sizes.values())[:2])
        self.ids = torch.randint(0, 512, (1, 64), generator=torch.Generator().manual_seed(0))
        self.balance()

    def balance(self) -> None:
        """As many tokens as make computing last as long as reading."""
        reading, spent = self.read(), self.compute()
        tokens = max(8, round(self.ids.shape[1] * reading / spent))
        self.ids = torch.randint(0, 512, (1, tokens), generator=torch.Generator().manual_seed(0))
        tokens = max(8, round(tokens * reading / self.compute()))
        self.ids = self.ids.repeat(1, 1 + tokens // self.ids.shape[1])[:, :tokens]
        self.expected = self.whole(self.ids).logits

    def compute(self) -> float:
        """Seconds of a pass of the resident model."""
        began = time.perf_counter()
        self.whole(self.ids)
        return time.perf_counter() - began

    def read(self) -> float:
        """Seconds of reading every unit once, into one buffer."""
        _drop(self.folder)
        reader, place = Reader({e.file for u in self.units for e in u.tensors.values()}), HostMemory()
        spare: list[Any] = []
        began = time.perf_counter()
        for unit in self.units:
            spare = [place.release(place.load(unit, reader, spare))]
        seconds = time.perf_counter() - began
        reader.close()
        return seconds

    def swap(self, overlap: bool = True, bytes_per_s: float | None = None) -> float:
        """Seconds of a cold pass under the budget, from the first byte asked for."""
        _drop(self.folder)
        with under_budget(self.folder, self.budget, preload=overlap, preswap=overlap, bytes_per_s=bytes_per_s) as model:
            logits = model(self.ids).logits
            seconds = time.perf_counter() - model.swapper.started
            assert model.swapper.peak_bytes <= self.budget
        if not torch.equal(logits, self.expected):
            raise ArtifactError("bench swapper: the swapped model's outputs are not the whole model's")
        return seconds

    def accelerate(self) -> float:
        """Seconds of a cold pass with accelerate's disk_offload."""
        _drop(self.offload)
        began = time.perf_counter()
        logits = self.offloaded(self.ids).logits
        seconds = time.perf_counter() - began
        if not torch.allclose(logits, self.expected, atol=1e-4):
            raise ArtifactError("bench swapper: accelerate's outputs differ")
        return seconds

    def round(self, turn: int) -> dict[str, float]:
        """One round: every contender once, in an order that rotates."""
        contenders: dict[str, Callable[[], float]] = {
            "compute": self.compute,
            "read": self.read,
            "ours": self.swap,
            "no_overlap": lambda: self.swap(overlap=False),
            "accelerate": self.accelerate,
            "600": lambda: self.swap(bytes_per_s=600e6),
            "200": lambda: self.swap(bytes_per_s=200e6),
        }
        names = list(contenders)
        with torch.no_grad():
            s = {name: contenders[name]() for name in names[turn % len(names) :] + names[: turn % len(names)]}
        limit = max(s["compute"], s["read"])
        return {
            "over_limit_balanced": s["ours"] / limit,
            "over_limit_600mbs": s["600"] / max(limit, self.bytes / 600e6),
            "over_limit_200mbs": s["200"] / max(limit, self.bytes / 200e6),
            "accelerate_over_ours": s["accelerate"] / s["ours"],
            "no_overlap_over_ours": s["no_overlap"] / s["ours"],
        }


def read_ratios() -> dict[str, float]:
    """What is read on the default search's own walk, over the least that could be (no time, so no rounds)."""
    sizes = {row["unit"]: int(row["bytes"]) for row in read_table(SIZES)}
    walked = [each for each in read_walk(WALK) if each.task == "openbookqa"]
    plan = units_of([block for each in walked for block in walk(each.chains, "candidate")], sizes)
    budget, window = sum(sizes.values()) // 2, len(sizes) // 2
    least = optimum_bytes(plan, sizes, budget)
    read = {w: sum(step.bytes for step in count(plan, sizes, budget, "plan", window=w)) for w in (None, window)}
    return {
        "reads_over_optimum_plan": read[None] / least,
        "reads_over_optimum_window": read[window] / least,
    }


def _settle(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())


def _drop(folder: Path) -> None:
    """Clean pages of a folder's files out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as handle:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
