"""Components on their own on one GPU, as JSON: the Block Comparator on two 7B models, saved models' answers.

    PYTHONPATH=src python tests/gpu/components_h200.py --zoo ZOO --texts FILE --keep /tmp/models \\
        --out components.json --models MODEL ... --questions FILE

Llama-7B's and OPT-6.7B's true shapes with random weights (27 GB of disk under ``--keep``), with the tokenizers of the
small models in ``--zoo`` (folders llama, opt), ``--count`` lines of ``--texts``. The small models themselves are
compared on the GPU and on the CPU in float32, and on the GPU in bfloat16. ``--models`` are folders that `federate`
saved; they answer ``--questions`` (JSON lines) on both. Needs torch, transformers, accelerate and pydantic.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from assyllm.artifacts import write_json
from assyllm.assembly.assembled import AssembledModel
from assyllm.assembly.predict import predict, read_asked
from assyllm.comparator.models import Comparison, compare
from assyllm.cost.shapes import CONFIGS
from assyllm.zoo.random import write_random

GB = 1e9
SHAPES = {"llama": "llama-7b", "opt": "opt-6.7b"}
FILES = ("tokenizer.json", "tokenizer_config.json")


def largest(a: Comparison, b: Comparison) -> dict[str, float]:
    """The largest difference of two comparisons' scores, by kind."""
    tables = {name: (torch.tensor(getattr(a, name)), torch.tensor(getattr(b, name))) for name in ("cka", "cor")}
    return {name: float((x - y).abs().max()) for name, (x, y) in tables.items()}


def at_true_shapes(zoo: Path, keep: Path, texts: list[str], max_tokens: int) -> dict[str, Any]:
    for name, shape in SHAPES.items():
        folder = keep / shape
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.json").is_file():
            write_random(CONFIGS[shape], folder, "gpu", shape, device="cuda")
        for file in FILES:
            shutil.copy(zoo / name / file, folder / file)
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    folders = [keep / shape for shape in SHAPES.values()]
    found = compare(*folders, texts, max_tokens=max_tokens, device="cuda", dtype="bfloat16")
    return {
        "texts": found.texts,
        "shortened": found.shortened,
        "layers": [len(found.cka), len(found.cka[0])],
        "scored": sum(row["compatibility"] is not None for row in found.rows()),
        "seconds": round(time.perf_counter() - began, 1),
        "gpu_peak_gb": round(torch.cuda.max_memory_allocated() / GB, 2),
        "host_peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB, 2),
        "first_row": [None if score is None else round(score, 4) for score in found.compatibility[0][:4]],
    }


def answers(folder: Path, questions: Path) -> dict[str, Any]:
    """A saved model on the CPU and on the GPU: how far its scores part, how many answers are the same."""
    asked = [question for question, _ in read_asked(questions)]
    found, seconds = {}, {}
    for device in ("cpu", "cuda", "cuda"):  # the first pass on a GPU starts it
        model = AssembledModel.from_pretrained(folder).to(device)
        began = time.perf_counter()
        found[device] = predict(model, asked)
        seconds[device] = round(time.perf_counter() - began, 2)
    pairs = list(zip(found["cpu"], found["cuda"], strict=True))
    parts = [abs(a - b) for old, new in pairs for a, b in zip(old["scores"], new["scores"], strict=True)]
    same = sum(old["chosen"] == new["chosen"] for old, new in pairs)
    return {"questions": len(asked), "same": same, "scores_part_by": max(parts), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--zoo", "--texts", "--keep", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=256)
    asked = parser.parse_args()
    texts = asked.texts.read_text(encoding="utf-8").splitlines()[: asked.count]
    pair = [asked.zoo / name for name in SHAPES]
    small = {name: compare(*pair, texts, max_tokens=64, **how) for name, how in {
        "cpu": {}, "gpu": {"device": "cuda"}, "gpu_bf16": {"device": "cuda", "dtype": "bfloat16"},
    }.items()}  # fmt: skip
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "gpu_less_cpu": largest(small["gpu"], small["cpu"]),
        "bf16_less_float32": largest(small["gpu_bf16"], small["cpu"]),
        "answers": {"/".join(model.parts[-2:]): answers(model, asked.questions) for model in asked.models},
        "true_shapes": at_true_shapes(asked.zoo, asked.keep, texts, asked.max_tokens),
    }
    write_json(asked.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
