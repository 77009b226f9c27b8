"""Peak memory and time of making, splitting and quantizing a random member of a real model's shape on the CPU.

    python benchmarks/split_memory.py [--model llama-7b] [--layers 32] [--folder /tmp] [--out split_memory.csv]

Each step runs in a process of its own; its peak is what the kernel counted as resident (VmHWM), libraries included.
Llama-7B needs 27 GB of disk beside 4 GB for the quantized pool, and about six minutes on one core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from assyllm.artifacts import output_folder
from assyllm.cost.shapes import config_of
from assyllm.results import write_table

STEPS = ("import", "random", "split", "quantize")


def run(step: str, model: str, layers: int, folder: Path) -> None:
    """One step, in this process."""
    import torch

    from assyllm.blocks.pool import write_model, write_pool
    from assyllm.params import Blocks, Quantize, read_yaml
    from assyllm.quantizer.pool import quantize_pool
    from assyllm.zoo.cards import ModelCard, write_card
    from assyllm.zoo.random import write_random

    torch.set_num_threads(1)
    hub = config_of(model) | {"num_hidden_layers": layers}
    if step == "random":
        with output_folder(folder / "member") as out:
            weights = write_random(hub, out, "benchmark")
            card = ModelCard(name="model", family=hub["model_type"], stands_for=model, source="random", origin=model,
                             licence="Apache-2.0", parameters=weights, weights_sha256="")  # fmt: skip
            write_card(out, card)
    elif step == "split":
        with output_folder(folder / "pool") as out:
            blocks = Blocks(edge_to_middle=2.0, blocks_per_model=None)
            write_pool(out, {"model": write_model(out, "model", hub["model_type"], folder / "member", blocks)})
    elif step == "quantize":
        values = read_yaml(Path(__file__).resolve().parents[1] / "params.yaml")["quantize"]
        settings = Quantize(**values | {"scheme": "uniform", "bits": 4, "rounding": "nearest", "group_size": 128})
        quantize_pool(folder / "pool", folder / "quantized", settings)


def measured(step: str, model: str, layers: int, folder: Path) -> dict[str, object]:
    """A step in a process of its own."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--step", step, "--model", model, "--layers", str(layers), "--folder"]
    done = subprocess.run([*command, str(folder)], check=True, stdout=subprocess.PIPE, text=True)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    row = {"model": model, "layers": layers, "step": step, "peak_gb": int(done.stdout) * 1024 / 1e9,
           "seconds": time.perf_counter() - began, "folder_gb": size / 1e9}  # fmt: skip
    print(row, flush=True)
    return row


def main() -> None:
    """All steps, and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-7b")
    parser.add_argument("--layers", type=int, help="fewer than the model's own")
    parser.add_argument("--folder", type=Path, help="where there is room")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    layers = options.layers or config_of(options.model)["num_hidden_layers"]
    if options.step:
        run(options.step, options.model, layers, options.folder)
        status = Path("/proc/self/status").read_text()
        print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        rows = [measured(step, options.model, layers, Path(name)) for step in STEPS]
    if options.out:
        write_table(options.out, rows)


if __name__ == "__main__":
    main()
