"""Would full fine-tuning do better with its language head? Likelihood of a choice beside the common head's score.

The study's baselines drop the language head and train a new one on the pooled state: all methods here share one head.
With few clients it is learned from some dozens of questions, and may end below the model's own zero-shot answers.
Here a choice's score is the log-likelihood of its tokens under the (trained) language head plus the common head's
score, which begins at zero: round 0 is zero-shot. Rates are chosen on dev with a partition that is in no study, as in
``snakemake tuning``:

    snakemake --cores 2 results data/partition/base/seed100
    python benchmarks/likelihood_head.py
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assyllm import params as P
from assyllm.baselines.full import FullFineTuning
from assyllm.baselines.job import encode_task, open_model, plan, read_task
from assyllm.baselines.local import Weights
from assyllm.baselines.method import HEAD
from assyllm.baselines.rounds import run_rounds
from assyllm.federated.cohort import device_memory, eligible_clients
from assyllm.results import write_table
from assyllm.zoo.forward import Packed, inputs, pool_states

LM_HEAD = "lm_head"
METHODS = (("ft_practical", "llama"), ("ft_oracle", "llama"), ("ft_oracle", "vicuna"))
RATES = {"fedavg": (0.0003, 0.001, 0.003, 0.006, 0.01), "fedadam": (0.0003, 0.0005, 0.001, 0.002, 0.004)}
COLUMNS = ("method", "model", "task", "seed", "rate", "best_round", "dev", "test", "end_dev", "source")


class WithLikelihood(FullFineTuning):
    """Full fine-tuning of a decoder, its language head included."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.lm_head = model.get_output_embeddings().weight.detach().clone()

    def start(self, seed: int = 0) -> Weights:
        """All pre-trained weights, and a common head of zeros."""
        return super().start(seed) | {LM_HEAD: self.lm_head.clone()}

    def scores(self, weights: Weights, batch: Packed) -> Tensor:
        """Scores [n, C]: log-likelihood of a choice's tokens, and the common head on its pooled state."""
        body = {name: tensor for name, tensor in weights.items() if name not in (HEAD, LM_HEAD)}
        states = torch.func.functional_call(self.base, body, args=(), kwargs=inputs(self.base.config, batch))
        hidden = states.last_hidden_state.reshape(*batch.ids.shape, -1)
        step = torch.arange(batch.ids.shape[-1])
        before = torch.roll(batch.segments, 1, -1)
        stem = (batch.segments == 0).sum(-1, keepdim=True) - 1  # the first token of a choice follows the stem's last
        parent = torch.where(before == batch.segments, step - 1, stem).clamp(min=0)
        at = hidden.gather(-2, parent[..., None].expand(*parent.shape, hidden.shape[-1]))
        tokens = torch.log_softmax(at @ weights[LM_HEAD].T, -1).gather(-1, batch.ids[..., None])[..., 0]
        choices = torch.arange(1, batch.choice_mask.shape[-1] + 1)
        own = batch.segments[..., None, :] == choices[:, None]  # [n, R, C, L]
        likelihood = (tokens[..., None, :] * own).sum(-1).sum(-2)
        return likelihood + pool_states(states.last_hidden_state, batch) @ weights[HEAD]


def main() -> None:
    """Tune on dev, run the study's seeds, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, default=Path(), help="folder whose data/ a study filled")
    parser.add_argument("--tuning-partition", type=Path, help="where the partition of params' tune.seed lies")
    parser.add_argument("--rates", type=float, nargs="*", help="instead of RATES, for every method")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, p = options.study / "data", P.load(options.study / "params.yaml")
    dealt = data / "partition" / "base"
    tuning_partition = options.tuning_partition or dealt / f"seed{p.tune.seed}"
    rows = []

    def run(method: str, name: str, task: str, seed: int, rate: float, partition: Path) -> dict[str, Any]:
        files = read_task(data / "tasks" / "base", partition, task, p.partition)
        model, tokenizer = open_model(data / "zoo" / "base" / "seed0" / name, p.tasks.lengths)
        subject = WithLikelihood(model)
        kept = getattr(p.baselines, method)[task]
        tuned = kept.at(rate, kept.local_epochs)
        encoded, _ = encode_task(files, tokenizer, subject, p.tasks.max_tokens[task])
        memory = device_memory(seed, p.fleet, p.partition.clients)
        eligible = eligible_clients(data / "cost" / "base" / f"{method}.csv", method, name, memory)
        going = replace(plan(tuned, p.federated, p.baselines), test_every=tuned.rounds)
        _, outcome = run_rounds(subject, encoded, going, seed, eligible)
        test = float((np.array(outcome.test_chosen) == encoded.test.answer.numpy()).mean())
        found = {"method": method, "model": name, "task": task, "seed": seed, "rate": rate,
                 "best_round": outcome.best_round, "dev": outcome.best_dev, "test": test,
                 "end_dev": outcome.rounds[-1]["dev"], "source": "measured"}  # fmt: skip
        print(found, flush=True)
        return found

    for method, name in METHODS:
        for task in p.tasks.names:
            rates = options.rates or RATES[getattr(p.baselines, method)[task].server]
            grid = [run(method, name, task, p.tune.seed, rate, tuning_partition) for rate in rates]
            best = max(grid, key=lambda row: row["dev"])["rate"]
            rows += [row | {"test": ""} for row in grid]  # test decides nothing
            rows += [run(method, name, task, seed, best, dealt / f"seed{seed}") for seed in options.seeds]
            write_table(options.out, rows, COLUMNS)


if __name__ == "__main__":
    main()
