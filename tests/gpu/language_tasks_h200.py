"""BoolQ and OpenBookQA end to end on a zoo of real language, every forward pass on one GPU; accuracies as CSV.

    PYTHONPATH=src python tests/gpu/language_tasks_h200.py --data DATA --zoo KEEP/zoo --work /tmp/tasks --out OUT

DATA holds ``boolq`` and ``openbookqa`` with ``{train,validation}.jsonl``; KEEP is what ``pretrain_h200.py`` was given.
The stages are the workflow's own, one process a method and task, as many side by side as the device's memory holds;
what they compute over tokens (blocks, adapters, whole models) is sent to the GPU by :func:`on_gpu`, all else stays
on the CPU. Parameters are those of ``presets/language`` but ``--rounds`` of fine-tuning. ``--tiny`` makes a zoo of
random weights instead and runs the same path in a minute, on a GPU or (``--device cpu``) without one; run it first.
Needs torch, transformers, tokenizers, safetensors, pydantic, typer, pandas; ``datasets`` is not needed.
"""

from __future__ import annotations

import argparse
import copy
import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PRESET = ROOT / "presets/language/params.yaml"
TASKS = ("boolq", "openbookqa")
# the longest first
METHODS = ("assyllm_paper", "assyllm", "untrained_blocks", "ft_oracle", "ft_practical", "one_model_blocks",
           "random_blocks", "zero_shot", "all_models_head", "one_model_head", "choices_only", "majority")  # fmt: skip
GPU_TOKENS = 32768  # of one forward pass
PROCESS_BYTES = 24e9  # of GPU memory that one process may want
SAMPLES, LEVEL = 2000, 0.95  # of the bootstrap over questions
TINY = {
    "llama": (32, 64, 4), "vicuna": (32, 64, 4), "opt": (24, 48, 4), "bert": (24, 48, 4), "roberta": (32, 64, 4),
}  # width, inner width, layers  # fmt: skip
COLUMNS = ("task", "method", "model", "test", "low", "high", "dev", "test_questions", "rounds", "seconds")

began = time.perf_counter()


def say(*words: object) -> None:
    """A line with the seconds since the start."""
    print(f"{time.perf_counter() - began:6.1f} s", *words, flush=True)


# ------------------------------------------------------------------------------------- where things are computed


def on_gpu(device: str) -> None:
    """From now on this process computes over tokens on ``device``; what leaves a function is on the CPU as before.

    Blocks, embeddings and encoded texts live on the device, adapters are copied there for each use (with gradients
    back to where they live), pooled vectors ``[N, C, P, d]`` and sums come back. A block's and an adapter's
    activations are computed again in the backward pass.
    """
    import torch
    from torch import Tensor
    from torch.utils.checkpoint import checkpoint

    from assyllm.adapter import fixed_attention, reading
    from assyllm.adapter.linear import LinearSums
    from assyllm.adapter.registry import KINDS
    from assyllm.blocks.block import Block
    from assyllm.blocks.pool import Pool
    from assyllm.comparator import activations, cor

    there = torch.device(device, 0) if device == "cuda" else torch.device(device)

    def kept(forward: Any) -> Any:
        """``forward`` whose activations are not kept for the backward pass."""

        def call(*given: Any) -> Any:
            if torch.is_grad_enabled():
                return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False)
            return forward(*given)

        return call

    plain_rows, plain_counted = activations.rows_of, activations._counted

    def rows_of(encoded: Any, chunk_tokens: int = GPU_TOKENS, like: Any = None) -> Any:
        rows = plain_rows(encoded, chunk_tokens, like)
        names = ("ids", "mask", "pools", "spans")
        chunks = [replace(chunk, **{n: getattr(chunk, n).to(there) for n in names}) for chunk in rows.chunks]
        return activations.Rows(tuple(chunks), rows.shape)

    def counts(values: Tensor, rms: float, bins: int, owner: Tensor, owners: int) -> Any:
        """``cor.counts``, on the device."""
        scaled = (values.float() * (bins / (2 * cor.RANGE * rms)) + bins / 2).floor()
        place = scaled.nan_to_num(nan=-1.0).clamp(0, bins - 1).long() + owner.to(values.device)[:, None] * bins
        place = place[torch.isfinite(values)]
        return torch.bincount(place, minlength=owners * bins).view(owners, bins).cpu().numpy()

    activations.rows_of = reading.rows_of = rows_of
    activations._counted = lambda chunk: plain_counted(chunk).cpu()
    cor.counts = counts
    plain_scatter = activations.Rows.scatter
    activations.Rows.scatter = lambda self, parts: plain_scatter(self, [part.cpu() for part in parts])

    plain_block, plain_embedding = Pool.block, Pool.embedding
    Pool.block = lambda self, block: plain_block(self, block).to(there)
    Pool.embedding = lambda self, model: plain_embedding(self, model).to(there)
    Block.forward = kept(Block.forward)

    def moving(forward: Any) -> Any:
        """An adapter's ``forward`` with its tensors where the states are."""

        def call(self: Any, states: Tensor, *given: Any) -> Tensor:
            twin = copy.copy(self)
            twin._parameters = {name: tensor.to(states.device) for name, tensor in self._parameters.items()}
            twin._buffers = {name: tensor.to(states.device) for name, tensor in self._buffers.items()}
            return forward(twin, states, *given)

        return call

    for kind in KINDS.values():
        kind.forward = kept(moving(kind.forward))
    fixed_attention.Rereading.__call__ = lambda self, join: (
        fixed_attention.patterns(join) @ self.weight.to(join.mask.device) + self.bias.to(join.mask.device)
    )
    plain_sums, plain_fit = LinearSums.of.__func__, LinearSums.fit

    def sums(cls: type, x: Tensor, y: Tensor, limit: Any = None) -> LinearSums:
        return cls(*(part.cpu() for part in plain_sums(cls, x.to(there), y.to(there), limit).parts()))

    def fit(self: LinearSums, ridge: float) -> Any:
        with there:
            return plain_fit(LinearSums(*(part.to(there) for part in self.parts())), ridge).cpu()

    LinearSums.of = classmethod(sums)
    LinearSums.fit = fit
    _whole_models_on_gpu(there)


def _whole_models_on_gpu(there: Any) -> None:
    """The baselines' part of :func:`on_gpu`: clients train one after the other, as devices do, weights on ``there``."""
    import numpy as np
    from torch import Tensor

    from assyllm.baselines import full, job, method, one_model_head
    from assyllm.baselines.local import train_client
    from assyllm.zoo import forward, likelihood

    plain_open, plain_pooled, plain_likelihoods = job.open_model, forward.pooled, likelihood.option_likelihoods
    plain_start, plain_scores = full.FullFineTuning.start, full.FullFineTuning.scores

    def open_model(folder: Path, lengths: Any) -> tuple[Any, Any]:
        model, tokenizer = plain_open(folder, lengths)
        return model.to(there), tokenizer

    def pooled(base: Any, weights: Any, batch: Any) -> Tensor:
        moved = type(batch)(**{name: tensor.to(there) for name, tensor in batch.tensors().items()})
        found = plain_pooled(base, weights, moved)
        return found.cpu() if weights is None else found

    def train(self: Any, weights: Any, data: Any, clients: Any, local: Any, *names: Any) -> Any:
        import torch

        total = sum(len(items) for _, items in clients)
        average = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        losses = []
        for client, items in clients:
            made, loss = train_client(self.step, weights, data, items, local, *names, client)
            losses.append(loss)
            for name, tensor in made.items():
                average[name] += tensor * (len(items) / total)
        return average, float(np.average(losses, weights=[len(items) for _, items in clients]))

    class Picked:
        """Logits that stay on the device until rows of them are picked."""

        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

        def __getitem__(self, key: Any) -> Any:
            return self.logits[key].cpu() if isinstance(key, Tensor) else Picked(self.logits[key])

    class Away:
        """A model that takes its arguments from the CPU."""

        def __init__(self, model: Any) -> None:
            self.model, self.config = model, model.config

        def found(self, given: dict[str, Any]) -> Any:
            moved = {name: value.to(there) if isinstance(value, Tensor) else value for name, value in given.items()}
            return self.model(**moved)

        def __call__(self, **given: Any) -> Any:
            return argparse.Namespace(logits=Picked(self.found(given).logits))

    class Told(Away):
        """The same, for who reads its layers' states on the CPU."""

        def parameters(self) -> Any:
            return self.model.parameters()

        def __call__(self, **given: Any) -> Any:
            found = self.found(given)
            states = [layer.cpu() for layer in found.hidden_states]
            return argparse.Namespace(hidden_states=states, last_hidden_state=found.last_hidden_state.cpu())

    plain_features = one_model_head.OneModelHead._features

    def features(self: Any, batch: Any) -> Tensor:
        own = self.base
        self.base = Told(own)
        try:
            return plain_features(self, batch)
        finally:
            self.base = own

    job.open_model = open_model
    full.pooled = pooled
    one_model_head.OneModelHead._features = features
    full.FullFineTuning.start = lambda self, seed=0: {n: t.to(there) for n, t in plain_start(self, seed).items()}
    full.FullFineTuning.scores = lambda self, weights, batch: plain_scores(self, weights, batch).cpu()
    method.Method.train = train
    likelihood.option_likelihoods = lambda model, *given: plain_likelihoods(Away(model), *given)


def plain_json_lines() -> None:
    """Read JSON lines without ``datasets``, where it is not installed."""
    from assyllm.tasks import sources

    if importlib.util.find_spec("datasets") is None:
        sources._local_rows = lambda path: [
            (n, json.loads(line)) for n, line in enumerate(path.read_text("utf-8").split("\n"), 1) if line.strip()
        ]


# -------------------------------------------------------------------------------------------------- the parameters


def write_params(options: argparse.Namespace) -> Path:
    """The preset with this run's changes, as a file that ``study.Plan`` reads."""
    from assyllm.params import read_yaml

    raw = read_yaml(PRESET)
    raw["tasks"] |= {"local_dir": str(options.data.resolve()), "test_items": options.test_items}
    raw["tasks"]["train_items"] |= dict.fromkeys(TASKS, options.train_items)
    for name in ("ft_oracle", "ft_practical"):
        for task in TASKS:
            raw["baselines"][name][task]["rounds"] = options.rounds
    if options.tiny:
        raw["tasks"] |= {"dev_items": 16, "max_tokens": {"boolq": 64, "piqa": 64, "openbookqa": 48}}
        raw["partition"]["clients"] = 20
        raw["federated"]["clients_per_round"] = 5
        raw["comparator"]["public_texts"] = 24
        raw["assembling"]["assyllm_paper"]["adapter"]["tuning_rounds"] = 3
        raw["assembling"]["assyllm"]["selection"] |= {"survey_rounds": 1, "max_blocks": 3}
        for part in raw["assembling"].values():
            part["head"]["rounds"] = 2
        raw["baselines"]["closed_form"]["rounds"] = 2
        for name, (width, inner, layers) in TINY.items():
            member = raw["zoo"]["models"][name]
            member |= {"hidden_size": width, "intermediate_size": inner, "layers": layers, "heads": 4}
            member["vocabulary"] = 600
    path = options.work / "params.yaml"
    path.write_text(json.dumps(raw, indent=1))  # JSON is YAML
    return path


def sections(options: argparse.Namespace, rule: str, method: str | None = None, task: str | None = None) -> str:
    """The JSON that a stage gets; of one task only, where a job runs one."""
    from assyllm.study import Plan

    found = json.loads(Plan(options.work / "params.yaml").sections(rule, "base", method))
    if task is not None:
        found["tasks"]["names"] = [task]
    return json.dumps(found, sort_keys=True)


def random_zoo(options: argparse.Namespace) -> None:
    """Five members of random weights with tokenizers trained on the tasks' own texts."""
    from assyllm import seeding
    from assyllm.artifacts import output_folder
    from assyllm.params import load
    from assyllm.zoo import tokenizers
    from assyllm.zoo.cards import ModelCard, write_card
    from assyllm.zoo.families import family as kind_of
    from assyllm.zoo.load import weights_sha256

    settings = load(options.work / "params.yaml").zoo
    texts = (options.work / "tasks/boolq/public.txt").read_text("utf-8").splitlines()
    for name, member in settings.models.items():
        kind = kind_of(member.family)
        tokenizer = tokenizers.train(kind, texts, member.vocabulary, settings.pretrain.max_tokens)
        model = kind.build(kind.config(member, tokenizer, settings.pretrain.max_tokens), seeding.seed_for("init", name))
        with output_folder(options.zoo / name) as made:
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
            card = ModelCard(name=name, family=member.family, stands_for=member.stands_for, source="random",
                             origin="random", licence="Apache-2.0", parameters=model.num_parameters(),
                             weights_sha256=weights_sha256(made))  # fmt: skip
            write_card(made, card)


# ------------------------------------------------------------------------------------------------------- the stages


def pool(options: argparse.Namespace) -> None:
    """Split and quantize the zoo, score its blocks on the clients' questions."""
    import torch

    from assyllm.params import parse_sections
    from assyllm.quantizer.pool import quantize_pool
    from assyllm.stages import partition, score, split

    on_gpu(options.device)
    work = options.work
    partition.run(sections(options, "partition"), "gpu", work / "tasks", options.seed, work / "partition")
    split.run(sections(options, "split"), "gpu", options.zoo, work / "pool")
    settings = parse_sections(sections(options, "quantize"), ("quantize",)).quantize
    quantize_pool(work / "pool", work / "quantized", settings, device=options.device)
    say("quantized")
    score.run(sections(options, "score"), "gpu", work / "quantized", work / "tasks", work / "partition", 0,
              work / "scores")  # fmt: skip
    say("scored", f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if options.device == "cuda" else "")


def cost(options: argparse.Namespace, method: str) -> None:
    """The table that says who takes part."""
    from assyllm.cost.same_step import SAME_STEP
    from assyllm.stages import cost as stage

    other = SAME_STEP.get(method)
    same = None if other is None else options.work / "cost" / f"{other}.csv"
    stage.run(sections(options, "cost", method), "gpu", method, options.work / "cost" / f"{method}.csv", None, same)


def method_run(options: argparse.Namespace, method: str, task: str) -> None:
    """One method on one task: its run folder."""
    from assyllm.params import ASSEMBLING
    from assyllm.stages import baseline, federate
    from assyllm.zoo.cards import read_card

    on_gpu(options.device)
    work, name = options.work, f"{method}-{task}"
    shared = {"method": method, "setting_name": "base", "setting": "", "tasks": work / "tasks",
              "partition": work / "partition", "cost": work / "cost" / f"{method}.csv",
              "zoo_seed": read_card(options.zoo / "llama").seed or 0,
              "seed": options.seed, "checkpoint": work / "checkpoints" / name, "out": work / "runs" / name}  # fmt: skip
    if method in ASSEMBLING:
        federate.run(sections(options, "federate", method, task), "gpu", pool=work / "quantized",
                     scores=[work / "scores"], **shared)  # fmt: skip
    else:
        baseline.run(sections(options, "baseline", method, task), "gpu", zoo=options.zoo, **shared)
    say(name, "done")


# -------------------------------------------------------------------------------------------------------- the table


def rows(folder: Path, method: str, task: str, seconds: float) -> list[dict[str, Any]]:
    """Test accuracy with its interval of each model of a run; dev beside it."""
    import numpy as np

    from assyllm.evaluate import paired_bootstrap

    def read(name: str) -> list[dict[str, str]]:
        with open(folder / name, newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))

    metrics = read("metrics.csv")
    hits: dict[str, list[int]] = {}
    for row in read("predictions.csv"):
        hits.setdefault(row["setting"], []).append(int(row["correct"]))
    found = []
    for setting, right in hits.items():
        _, low, high = paired_bootstrap([np.array(right)], [str(i) for i in range(len(right))], SAMPLES, LEVEL)
        whole = [r for r in metrics if r["setting"] == setting and r["metric"] == "accuracy" and r["split"] == "dev"]
        last = [r for r in whole if not r["round"] or r["round"] == "0"] or whole
        rounds = max((int(r["round"]) for r in metrics if r["round"]), default=0)
        found.append(
            {
                "task": task, "method": method, "model": setting.removeprefix('model="').removesuffix('"'),
                "test": float(np.mean(right)), "low": low, "high": high,
                "dev": float(last[-1]["value"]) if last else "", "test_questions": len(right), "rounds": rounds,
                "seconds": round(seconds, 1),
            }
        )  # fmt: skip
    return found


def write_rows(options: argparse.Namespace, table: list[dict[str, Any]]) -> None:
    """The table so far."""
    with open(options.out / "language_zoo.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows(sorted(table, key=lambda row: (row["task"], METHODS.index(row["method"]), row["model"])))


def write_hits(options: argparse.Namespace, method: str, task: str) -> None:
    """Add a run to ``hits.csv``, which `benchmarks/language_zoos.py` reads: right or not, by name of the question."""
    from assyllm.zoo.cards import read_card

    found: dict[str, dict[str, str]] = {}
    with open(options.work / "runs" / f"{method}-{task}" / "predictions.csv", newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            found.setdefault(f"{method} {row['setting']}".strip(), {})[row["question"]] = row["correct"]
    seed, path = read_card(options.zoo / "llama").seed, options.out / "hits.csv"
    with open(path, "a", newline="", encoding="utf-8") as handle:
        if not handle.tell():
            csv.writer(handle).writerow(("pretrain_seed", "task", "seed", "method", "hits"))
        for name, hits in found.items():
            csv.writer(handle).writerow((seed, task, options.seed, name, "".join(hits[q] for q in sorted(hits))))


def keep_small(options: argparse.Namespace, name: str) -> None:
    """A run's small files beside the table: metrics, models, recipe, the end of its log."""
    run, log = options.work / "runs" / name, options.work / "logs" / f"{name}.log"
    parts = [f"==> {name} <==", *(log.read_text(errors="replace").splitlines()[-12:] if log.is_file() else [])]
    parts += [p.read_text() for p in (run / "models.csv", *run.glob("models/*/recipe.yaml")) if p.is_file()]
    with open(options.out / "language_runs.txt", "a", encoding="utf-8") as handle:
        handle.write("\n".join(parts) + "\n")


class Jobs:
    """Processes side by side, each with its own log."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.running = options, {}
        self.logs = options.work / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *job: str) -> None:
        """Begin a job of this script."""
        with open(self.logs / f"{name}.log", "ab") as log:
            command = [sys.executable, *sys.argv, "--job", *job]
            made = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self.running[name] = (made, time.perf_counter())

    def finished(self) -> list[tuple[str, int, float]]:
        """What has ended since the last call: name, exit status, seconds."""
        ended = [(name, made.poll(), start) for name, (made, start) in self.running.items()]
        ended = [(name, code, time.perf_counter() - start) for name, code, start in ended if code is not None]
        for name, _, _ in ended:
            del self.running[name]
        return ended

    def wait(self, *names: str) -> None:
        """Until these have ended; the last lines of one that failed are printed, and the script ends."""
        while set(names) & set(self.running):
            time.sleep(0.2)
            for name, code, seconds in self.finished():
                say(name, "ended" if code == 0 else f"FAILED ({code})", f"{seconds:.0f} s")
                if code:
                    self.tail(name)
                    raise SystemExit(1)

    def tail(self, name: str) -> None:
        """Print the end of a log."""
        print((self.logs / f"{name}.log").read_text(errors="replace")[-2500:], flush=True)

    def stop(self) -> None:
        """End what still runs."""
        for made, _ in self.running.values():
            made.terminate()


def run_methods(options: argparse.Namespace, jobs: Jobs, workers: int) -> None:
    """Every method on every task, longest first; a failure is tried once more, alone on its checkpoint."""
    todo = [(method, task) for method in options.methods for task in options.tasks]
    tried: dict[str, int] = {}
    table: list[dict[str, Any]] = []
    names: dict[str, tuple[str, str]] = {}
    while todo or jobs.running:
        while todo and len(jobs.running) < workers:
            method, task = todo.pop(0)
            name = f"{method}-{task}"
            names[name], tried[name] = (method, task), tried.get(name, 0) + 1
            jobs.start(name, "run", method, task)
        time.sleep(0.3)
        for name, code, seconds in jobs.finished():
            if code == 0:
                table += rows(options.work / "runs" / name, *names[name], seconds)
                for row in table[-1:]:
                    say(name, f"{row['test']:.4f} [{row['low']:.4f}, {row['high']:.4f}] of {row['test_questions']}",
                        f"dev {row['dev']}", f"{seconds:.0f} s")  # fmt: skip
                write_rows(options, table)
                write_hits(options, *names[name])
            else:
                say(name, f"FAILED ({code}) after {seconds:.0f} s")
                jobs.tail(name)
                if tried[name] < 2:
                    todo.append(names[name])
            keep_small(options, name)
        if time.perf_counter() - began > options.seconds:
            left = [*jobs.running, *(f"{m}-{t}" for m, t in todo)]
            say("no time left for", *left)
            for name in jobs.running:
                keep_small(options, name)
            jobs.stop()
            break


def main() -> None:
    """Prepare tasks, pool and costs; run every method; write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with boolq/ and openbookqa/")
    parser.add_argument("--zoo", type=Path, required=True, help="one folder a model (made here with --tiny)")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where language_zoo.csv goes")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--rounds", type=int, default=20, help="of fine-tuning (the preset has 10)")
    parser.add_argument("--train-items", type=int, default=2000)
    parser.add_argument("--test-items", type=int, help="all if not given")
    parser.add_argument("--workers", type=int, help="processes side by side; by the device's memory if not given")
    parser.add_argument("--seconds", type=float, default=560, help="of the whole command; then all is stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--job", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        options.rounds, options.train_items, options.test_items = 2, 80, 30
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_OFFLINE": "1",
                   "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}  # fmt: skip
    for folder in (options.work, options.out):
        folder.mkdir(parents=True, exist_ok=True)
    if options.job:
        try:
            {"pool": pool, "cost": cost, "run": method_run}[options.job[0]](options, *options.job[1:])
        except BaseException:
            traceback.print_exc()
            raise SystemExit(1) from None
        return
    write_params(options)
    plain_json_lines()
    from assyllm.stages import tasks

    shutil.rmtree(options.work / "tasks", ignore_errors=True)
    tasks.run(sections(options, "tasks"), "gpu", options.work / "tasks")
    say("tasks")
    if options.tiny:
        random_zoo(options)
        say("random zoo")
    jobs = Jobs(options)
    jobs.start("pool", "pool")
    from assyllm.cost.same_step import SAME_STEP

    # majority and zero_shot read no table, but a file has to be there
    for method in sorted({SAME_STEP.get(m, m) for m in options.methods}):
        while len(jobs.running) >= max(1, (os.cpu_count() or 1) - 1):
            jobs.wait(*list(jobs.running)[-1:])
        jobs.start(f"cost-{method}", "cost", method)
    jobs.wait(*(name for name in jobs.running if name.startswith("cost-")))
    for method in options.methods:
        if method in SAME_STEP:
            cost(options, method)
    jobs.wait("pool")
    if options.device == "cuda":
        import torch

        memory = torch.cuda.get_device_properties(0).total_memory
        workers = options.workers or max(1, int(memory / PROCESS_BYTES))
        say(torch.cuda.get_device_name(), workers, "processes")
    else:
        workers = options.workers or 1
    run_methods(options, jobs, workers)
    say("done", options.out / "language_zoo.csv")


if __name__ == "__main__":
    main()
