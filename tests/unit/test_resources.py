"""Facts of the real tasks that modelled times rest on, held against the tasks themselves."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest

from assyllm import params as P
from assyllm.cost.resources import ROWS_PER_CHOICE, TRAIN_ITEMS, places_of, tradeoff_table, with_hours
from assyllm.cost.walked import Spent
from assyllm.zoo.encoding import encode
from assyllm.zoo.forward import pack
from assyllm.zoo.load import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("ASSYLLM_DATA", ""))
LLAMA = DATA / "models" / "stories260K"


@pytest.mark.skipif(not LLAMA.is_dir(), reason="needs ASSYLLM_DATA with models/stories260K")
@pytest.mark.parametrize(("task", "max_tokens"), [("boolq", 256), ("piqa", 256), ("openbookqa", 512)])
def test_a_chain_reads_so_many_more_tokens_than_a_whole_decoder(task: str, max_tokens: int) -> None:
    module = importlib.import_module(f"assyllm.tasks.{task}")
    lines = (DATA / task / "train.jsonl").read_text().splitlines()
    assert len(lines) <= TRAIN_ITEMS[task]
    questions = [module.question(json.loads(line), str(i)) for i, line in enumerate(lines[:1500])]
    encoded = encode(load_tokenizer(LLAMA), questions, max_tokens)
    walked = int(encoded.mask[encoded.choice_mask].sum())
    whole = int((pack(encoded, causal=True).segments >= 0).sum())
    assert walked / whole == pytest.approx(ROWS_PER_CHOICE[task], abs=0.02)


def test_a_way_of_selecting_is_priced_by_its_own_walks() -> None:
    """Half the rounds on the same chain and candidates: half the energy; other settings have no row."""
    p = P.load(ROOT / "params.yaml")
    few = "assembling.assyllm.selection.rounds_per_block=1"
    walks, models, accuracy = [], [], []
    for run, setting, rounds in (("a", "", 4), ("b", few, 2), ("c", "partition.alpha=0.1", 4)):
        shared = {"run_id": run, "task": "piqa"}
        models.append({**shared, "method": "assyllm", "setting": setting, "blocks": "llama:0-1 opt:1-2",
                       "reported": 1, "trained_joins": 0})  # fmt: skip
        walks += [
            {**shared, "round": str(i), "phase": "select", "chain": "llama:0-1", "candidates": "opt:1-2 llama:3-4"}
            for i in range(rounds)
        ]
        accuracy.append({"task": "piqa", "method": "assyllm", "setting": setting, "split": "test", "world": "embedded",
                         "mean": 0.9, "low": 0.8, "high": 1.0, "runs": 1})  # fmt: skip
    accuracy.append({**accuracy[0], "method": "ft_oracle"})
    resources = [{"method": m, "task": "piqa", "energy_kj": e} for m, e in (("assyllm", 30.0), ("ft_oracle", 60.0))]
    rows = tradeoff_table(accuracy, resources, places_of(walks, models, p))
    energy = {(r["method"], r["setting"]): r["value"] for r in rows if r["what"] == "energy_of_full"}
    assert energy == {("assyllm", ""): 0.5, ("assyllm", few): pytest.approx(0.25), ("ft_oracle", ""): 1.0}
    assert {r["source"] for r in rows if r["what"] == "accuracy"} == {"measured"}
    assert {r["source"] for r in rows if r["what"] != "accuracy"} == {"modelled"}


def test_hours_go_by_the_walk_where_rounds_are_unlike() -> None:
    """A first round three times as long as the next; a baseline's rounds are alike; a method unpriced has none."""
    rounds = [{"task": "piqa", "method": m, "round": r} for m in ("assyllm", "lora", "majority") for r in ("1", "2")]
    resources = [{"method": "assyllm", "task": "piqa", "rounds": 2, "hours": 8.0},
                 {"method": "lora", "task": "piqa", "rounds": 4, "hours": 8.0}]  # fmt: skip
    places = {("", "assyllm", "piqa"): Spent(3.2, (3.0, 4.0), 0, 0, 0)}
    rows = with_hours(rounds, resources, places)
    assert [row["hours"] for row in rows] == [6.0, 8.0, 2.0, 4.0, "", ""]
    assert [row["hours_source"] for row in rows] == ["modelled"] * 4 + ["", ""]
