"""Baselines: the vectorised cohort equals the plain loop; rounds, participation, resume; the stages' files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from assyllm import params as P
from assyllm.artifacts import ArtifactError
from assyllm.baselines import local as local_training
from assyllm.baselines import majority
from assyllm.baselines.job import budget
from assyllm.baselines.local import Local, groups, schedule, train_client, train_cohort
from assyllm.baselines.method import choose
from assyllm.baselines.rounds import Diverged, Plan, run_rounds
from assyllm.checkpoint import Checkpoint
from assyllm.federated.cohort import eligible_clients
from assyllm.results import Metric, Prediction, Run, check_columns, write_table
from assyllm.stages import baseline, tune
from assyllm.zoo.forward import mask_padding
from tiny import zoo as tiny
from tiny.training import CLIENTS, OWNED, data, method


@pytest.mark.parametrize(
    ("family", "optimizer", "epochs", "batch"),
    [("llama", "adamw", 2, 4), ("llama", "momentum", 2, 4), ("opt", "sgd", 2, 4), ("bert", "adamw", 2, 4),
     ("roberta", "adamw", 2, 4), ("llama", "sgd", 1, 4), ("bert", "sgd", 1, 16)],
)  # fmt: skip
def test_cohort_equals_the_loop_over_clients(
    family: str, optimizer: str, epochs: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one step of SGD a client it is one pooled step (its chunks small here), else one call for like clients."""
    monkeypatch.setattr("assyllm.baselines.local.CHUNK_TOKENS", 200)
    called = []
    real = local_training.pooled_step
    monkeypatch.setattr(local_training, "pooled_step", lambda *given: called.append(1) or real(*given))
    local = Local(0.01, epochs, batch, optimizer, head_factor=3.0)
    # in float64, as AdamW turns a gradient's rounding error into a whole step wherever the gradient is zero
    subject, split = method(family, torch.float64), data(family).train
    start = subject.start()
    start["head.weight"] = torch.linspace(-0.5, 0.5, len(start["head.weight"]), dtype=torch.float64)
    clients = [(c, items) for c, items in enumerate(OWNED) if items]
    together, loss = train_cohort(subject.loss, start, split, clients, local, "test", 1)
    total = sum(len(items) for _, items in clients)
    expected = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    mean = 0.0
    for client, items in clients:
        weights, lost = train_client(subject.step, start, split, items, local, "test", 1, client)
        mean += lost * len(items) / total
        for name, tensor in weights.items():
            expected[name] += tensor * (len(items) / total)
    assert loss == pytest.approx(mean, rel=1e-4)
    for name, tensor in expected.items():
        moved = (tensor - start[name]).abs().max()
        assert (tensor - together[name]).abs().max() <= 1e-5 * moved + 1e-9, name
        assert moved > 0 or "embed" in name or "position" in name or "token_type" in name, name
    assert bool(called) == (optimizer == "sgd" and epochs == 1)


def test_sgd_makes_one_step_of_all_items() -> None:
    assert [len(step) for step in schedule(40, Local(1.0, 1, 16, "sgd"), "x")] == [40]
    assert [len(step) for step in schedule(40, Local(1.0, 1, 16, "adamw"), "x")] == [16, 16, 8]


def test_groups_hold_every_client_once_and_keep_like_sizes_together() -> None:
    found = groups([1, 1, 16, 1, 16], [1, 1, 40, 1, 40], [100] * 5)
    assert sorted(k for group in found for k in group) == [0, 1, 2, 3, 4]
    assert [2, 4] in found
    assert groups([16] * 3, [1] * 3, [10**6] * 3) == [[0], [1], [2]]  # long texts: one client a call


def test_evaluation_does_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, weights = method(), method().start()
    weights["head.weight"] = torch.linspace(-1, 1, len(weights["head.weight"]))
    chosen = choose(subject, weights, data().test)
    with torch.no_grad():
        scores = mask_padding(subject.scores(weights, data().test), data().test.choice_mask)
    assert chosen.tolist() == scores.argmax(-1).tolist()
    monkeypatch.setattr("assyllm.baselines.local.CHUNK_TOKENS", 1)
    assert chosen.tolist() == choose(subject, weights, data().test).tolist()


PLAN = Plan(6, 3, 2, Local(0.01, 1, 4, "adamw"), dropout=0.3)


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_rounds_learn_choose_on_dev_and_repeat_exactly() -> None:
    plan = Plan(20, 5, 5, Local(0.01, 2, 16, "adamw"))
    best, outcome = run_rounds(method(), data(), plan, 0, range(CLIENTS))
    assert [row["round"] for row in outcome.rounds if "dev" in row] == [5, 10, 15, 20]
    assert outcome.rounds[-1]["loss"] < outcome.rounds[0]["loss"] - 0.1
    devs = {row["round"]: row["dev"] for row in outcome.rounds if "dev" in row}
    assert outcome.best_dev == max(devs.values())
    assert outcome.best_round == min(r for r, dev in devs.items() if dev == outcome.best_dev)
    assert choose(method(), best, data().test).tolist() == outcome.test_chosen
    size = sum(tensor.numel() * 4 for tensor in best.values())
    assert all(row["bytes_up"] == row["bytes_down"] == size for row in outcome.rounds)
    again, repeated = run_rounds(method(), data(), plan, 0, range(CLIENTS))
    assert same(best, again)
    assert repeated.rounds == outcome.rounds


def test_divergence_is_said_in_one_line() -> None:
    plan = Plan(6, 3, 2, Local(1e30, 2, 4, "momentum"))
    with pytest.raises(Diverged, match=r"round \d: the loss is \w+; lower the rate"):
        run_rounds(method(), data(), plan, 0, range(CLIENTS))


def test_who_is_late_is_not_averaged_and_its_bytes_are_told() -> None:
    plan = replace(PLAN, dropout=0.0, clients_per_round=5)
    _, everyone = run_rounds(method(), data(), plan, 0, range(CLIENTS))
    _, some = run_rounds(method(), data(), replace(plan, stragglers=0.5), 0, range(CLIENTS))
    late = [row.get("stragglers", 0) for row in some.rounds]
    assert 0 < sum(late) < 5 * len(late)
    asked = [row["participants"] for row in everyone.rounds]
    assert asked == [row["participants"] + n for row, n in zip(some.rounds, late, strict=True)]
    assert not any("stragglers" in row for row in everyone.rounds)


def test_dropout_and_empty_clients_shrink_the_cohort() -> None:
    _, outcome = run_rounds(method(), data(), PLAN, 0, [2, 4])  # client 2 holds nothing
    assert all(row["participants"] <= 1 for row in outcome.rounds)
    _, nobody = run_rounds(method(), data(), PLAN, 0, [])
    assert nobody.rounds == []
    assert len(nobody.test_chosen) == 20


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_a_killed_run_resumes_to_identical_results(tmp_path: Path, stop: int) -> None:
    best, outcome = run_rounds(method(), data(), PLAN, 0, range(CLIENTS))

    def kill(row: dict) -> None:
        if row["round"] == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rounds(method(), data(), PLAN, 0, range(CLIENTS), Checkpoint(tmp_path, "t", "key"), kill)
    done = []
    resumed = run_rounds(
        method(), data(), PLAN, 0, range(CLIENTS), Checkpoint(tmp_path, "t", "key"), lambda row: done.append(row)
    )
    assert len(done) == 6 - 2 * (stop // 2)
    assert same(best, resumed[0])
    assert resumed[1].rounds == outcome.rounds
    assert resumed[1].test_chosen == outcome.test_chosen


def test_another_key_or_a_torn_file_is_no_checkpoint(tmp_path: Path) -> None:
    saved = Checkpoint(tmp_path, "t", "key")
    assert saved.load() is None
    saved.save({"a": torch.ones(3)}, {"x": 0.1})
    tensors, state = saved.load() or ({}, {})
    assert (tensors["a"].tolist(), state) == ([1, 1, 1], {"x": 0.1})
    assert Checkpoint(tmp_path, "t", "other").load() is None
    path = tmp_path / "t.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    assert saved.load() is None
    assert Checkpoint(None, "t", "key").load() is None


def cost_table(path: Path, name: str, threshold: int) -> Path:
    common = {"method": name, "share": 0.5, "peak_gb": 1}
    fits = [(model, gb, int(gb >= threshold)) for model in ("llama", "bert") for gb in (64, 4)]
    write_table(path, [{**common, "model": m, "memory_gb": gb, "participates": yes} for m, gb, yes in fits])
    return path


def test_participation_comes_from_the_cost_table(tmp_path: Path) -> None:
    cost = cost_table(tmp_path / "c.csv", "ft_practical", 64)
    assert eligible_clients(cost, "ft_practical", "llama", [64, 4, 64]) == [0, 2]
    assert budget(cost, "ft_practical", "llama") == "64 GB"
    assert budget(cost_table(tmp_path / "d.csv", "ft_oracle", 0), "ft_oracle", "llama") == "none"
    assert budget(cost_table(tmp_path / "e.csv", "ft_practical", 128), "ft_practical", "llama") == "no device"
    with pytest.raises(ArtifactError, match="8 GB"):
        eligible_clients(cost, "ft_practical", "llama", [8])
    with pytest.raises(ArtifactError, match="opt"):
        eligible_clients(cost, "ft_practical", "opt", [64])
    with pytest.raises(ArtifactError, match=r"c\.csv: the cost table of ft_practical, qlora's is expected"):
        eligible_clients(cost, "qlora", "llama", [64])
    write_table(tmp_path / "f.csv", [{"model": "llama", "method": "qlora"}])
    with pytest.raises(ArtifactError, match=r"f\.csv: no cost table, it has no column memory_gb"):
        eligible_clients(tmp_path / "f.csv", "qlora", "llama", [64])


def test_majority_answers_alike() -> None:
    questions = tiny.questions("boolq", "train", 40)
    chosen = majority.choose(questions, questions[:5])
    most = np.bincount([q.answer for q in questions]).argmax()
    assert chosen.tolist() == [most] * 5


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", 'model="opt"'),
        ("partition.alpha=0.1 zoo.seed=1", 'model="opt" partition.alpha=0.1 zoo.seed=1'),
        ('baselines.x=[1, "a b"]', 'baselines.x=[1, "a b"] model="opt"'),
    ],
)
def test_zero_shot_settings_name_the_model(setting: str, expected: str) -> None:
    assert baseline.with_model(setting, "opt") == expected


# ------------------------------------------------------------------------------------------------- stages


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("job")
    names = ("boolq", "openbookqa")
    return {
        "root": root,
        "zoo": tiny.write_zoo(root / "zoo", ("llama", "bert")),
        "tasks": tiny.write_tasks(root / "tasks", names),
        "partition": tiny.write_partition(root / "partition", names),
    }


def sections(names: tuple[str, ...], method: str) -> str:
    raw = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    raw["zoo"]["models"] = {name: raw["zoo"]["models"][name] for name in ("llama", "bert")}
    raw["tasks"] |= {"names": ["boolq", "openbookqa"], "max_tokens": {"boolq": 40, "openbookqa": 40}}
    raw["partition"]["clients"] = 12
    raw["federated"]["clients_per_round"] = 4
    raw["fleet"]["memory_gb"] = {64: 0.5, 4: 0.5}
    tuning = {"server_rate": 0.005, "rounds": 4, "local_epochs": 1, "batch": 16}
    raw["baselines"] = {key: raw["baselines"][key] for key in ("closed_form", "model")} | {
        "evaluate_every": 2,
        "test_every": 2,
    }
    method = P.SHARES.get(method, method)
    if method in P.TUNED:
        raw["baselines"][method] = dict.fromkeys(("boolq", "openbookqa"), tuning)
    raw["tune"] |= {"rates": [0.001, 0.01], "local_epochs": [1]}
    return json.dumps({name: raw[name] for name in names}, sort_keys=True)


def run_baseline(files: dict[str, Path], name: str, out: str, cost: Path, shared: Path | None = None) -> Path:
    root = files["root"]
    text = sections(baseline.SECTIONS, name)
    baseline.run(text, "code", name, "base", "", files["zoo"], 0, files["tasks"], files["partition"], cost, 0,
                 root / "checkpoint", root / out, shared)  # fmt: skip
    return root / out


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize(
    "name",
    ["majority", "server_head", "zero_shot", "ft_practical", "choices_only", "one_model_head", "all_models_head",
     "lora", "fedadapter", "fwdllm"],
)  # fmt: skip
def test_baseline_stage_writes_a_whole_run_twice_alike(files: dict[str, Path], name: str) -> None:
    cost = cost_table(files["root"] / f"{name}.csv", name, 64)
    out = run_baseline(files, name, name, cost)
    run = check_columns(out / "run.csv", Run)[0]
    metrics = check_columns(out / "metrics.csv", Metric)
    predictions = check_columns(out / "predictions.csv", Prediction)
    assert (run["run_id"], run["world"]) == (f"base-{name}-zoo0-seed0", "embedded")
    final = [m for m in metrics if (m["metric"], m["split"], m["round"]) == ("accuracy", "test", "")]
    models = 2 if name == "zero_shot" else 1
    assert [m["task"] for m in final].count("boolq") == models
    assert len(predictions) == 2 * 30 * models
    assert run["budget"] == ("none" if name in (*P.NO_DEVICE, "zero_shot") else "64 GB")
    if name == "zero_shot":
        assert {m["setting"] for m in metrics} == {'model="llama"', 'model="bert"'}
    if name in P.HEADS:
        assert run["models"] == ("bert llama" if name == "all_models_head" else "llama")
        heard = [float(m["value"]) for m in metrics if m["metric"] == "participants" and m["task"] == "boolq"]
        assert sum(heard) == 6, "each of those whose memory suffices once"
    if name in P.TUNED:
        eligible = {m["value"] for m in metrics if m["metric"] == "eligible_clients"}
        assert eligible == {"6"}
        curve = [m["round"] for m in metrics if m["metric"] == "accuracy" and m["round"] and m["split"] == "test"]
        assert curve == ["2", "4", "2", "4"]
        assert {m["value"] for m in metrics if m["metric"] == "converged_round"} <= {"2", "4"}
        assert rows(out / "timings.csv")
    assert not (files["root"] / "checkpoint").exists()
    again = run_baseline(files, name, f"{name}_again", cost)
    for file in ("run.csv", "metrics.csv", "predictions.csv", "manifest.json"):
        assert (out / file).read_bytes() == (again / file).read_bytes(), file


def test_recomputation_and_swapping_share_the_oracles_run(files: dict[str, Path]) -> None:
    everyone = [cost_table(files["root"] / f"{name}.csv", name, 0) for name in ("ft_oracle", "swapping")]
    oracle = run_baseline(files, "ft_oracle", "oracle", everyone[0])
    out = run_baseline(files, "swapping", "swapping", everyone[1], oracle)
    run = check_columns(out / "run.csv", Run)[0]
    assert (run["method"], run["shares_trajectory_of"]) == ("swapping", "ft_oracle")
    metrics = check_columns(out / "metrics.csv", Metric)
    assert {m["method"] for m in metrics} == {"swapping"}
    assert {m["run_id"] for m in metrics} == {run["run_id"]}
    proof = {(m["task"], m["metric"]): float(m["value"]) for m in metrics}
    assert proof["boolq", "gradient_difference"] == proof["boolq", "weight_difference"] == 0.0
    assert proof["boolq", "compared_steps"] >= 2
    for ours, theirs in zip(rows(out / "predictions.csv"), rows(oracle / "predictions.csv"), strict=True):
        assert ours == theirs | {"method": "swapping", "run_id": run["run_id"]}
    with pytest.raises(ArtifactError, match="does not share"):
        run_baseline(files, "recomputation", "wrong", everyone[1], out)
    # at a participation of its own it makes the rounds itself, which are full fine-tuning's
    own = cost_table(files["root"] / "recomputation.csv", "recomputation", 64)
    alone = run_baseline(files, "recomputation", "alone", own, oracle)
    assert check_columns(alone / "run.csv", Run)[0]["shares_trajectory_of"] == ""
    practical = run_baseline(
        files, "ft_practical", "practical", cost_table(files["root"] / "p.csv", "ft_practical", 64)
    )
    chosen = [[row["chosen"] for row in rows(folder / "predictions.csv")] for folder in (alone, practical)]
    assert chosen[0] == chosen[1]


def test_tune_stage_ranks_the_grid_by_dev(files: dict[str, Path]) -> None:
    cost = cost_table(files["root"] / "tune_cost.csv", "ft_oracle", 0)
    out = files["root"] / "tuning.csv"
    tune.run(sections(tune.SECTIONS, "ft_oracle"), "code", "ft_oracle", files["zoo"], files["tasks"],
             files["partition"], cost, out)  # fmt: skip
    table = rows(out)
    assert [row["place"] for row in table] == ["1", "2", "1", "2"]
    assert float(table[0]["dev_accuracy"]) >= float(table[1]["dev_accuracy"])
    assert {row["seed"] for row in table} == {str(P.load(Path(__file__).parents[2] / "params.yaml").tune.seed)}
