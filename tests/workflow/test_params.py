"""Bad parameters get one line that names the key, before any rule runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from assyllm import params as P
from assyllm.study import RULES, Plan, stage_module

ROOT = Path(__file__).parents[2]


def changed(tmp_path: Path, dotted: str, value: object) -> Path:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    node = raw
    *parents, leaf = dotted.split(".")
    for part in parents:
        node = node[part]
    node[leaf] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.committed  # the lines say what stands beside the wrong value
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("partition.alhpa", 1.0, "partition.alhpa: unknown key, did you mean 'alpha'?"),
        ("partitoin", {}, "partitoin: unknown key, did you mean 'partition'?"),
        ("partition.alpha", -1, "partition.alpha: Input should be greater than 0 (got -1)"),
        (
            "baselines.ft_oracle.boolq.server_rate",
            {"llama": 0, "vicuna": 1.0, "opt": 1.0},
            "baselines.ft_oracle.boolq.server_rate.llama: Input should be greater than 0 (got 0)",
        ),
        ("zoo.models.llama.hidden_size", 60, "zoo.models.llama.hidden_size 60 is 15 a head"),
        ("world.entities", 300_000, "world.entities: Input should be less than or equal to 100000"),
        ("partition.alpha", "one", "partition.alpha: Input should be a valid number"),
        ("quantize.bits", 5, "quantize.bits: Input should be 3, 4, 8 or 16 (got 5)"),
        (
            "federated.clients_per_round",
            201,
            "federated.clients_per_round: 201 is more than partition.clients",
        ),
        (
            "assembling.assyllm_paper.selection.kept_per_round",
            9,
            "assembling.assyllm_paper.selection.kept_per_round: 9 is more than evaluated_per_round",
        ),
        ("federated.stragglers", 1.5, "federated.stragglers: Input should be less than 1 (got 1.5)"),
        ("federated.liars", -0.1, "federated.liars: Input should be greater than or equal to 0 (got -0.1)"),
        ("federated.lie", "vote", "federated.lie: Input should be 'votes' or 'sums' (got 'vote')"),
        ("federated.row_norm", 0, "federated.row_norm: Input should be greater than 0 (got 0)"),
        ("federated.max_examples", 0, "federated.max_examples: Input should be greater than or equal to 1 (got 0)"),
        ("partition.items_per_client", 0, "partition.items_per_client: Input should be greater than or equal to 1"),
        ("baselines.lora.boolq.rank", 4, "baselines.lora: other adapters for other tasks"),
        (
            "baselines.lora_all",
            {"boolq": {"server_rate": 0.03, "rounds": 9, "local_epochs": 1, "batch": 16, "rank": 4}},
            "baselines.lora_all: other adapters than those of lora",
        ),
        ("baselines.model", "bert", "baselines.ft_oracle.boolq.server_rate: none for 'bert'"),
        (
            "baselines.ft_practical.piqa.learning_rate",
            {"opt": 0.01},
            "baselines.ft_practical.piqa.learning_rate: none for 'llama'",
        ),
        ("baselines.ft_oracle.piqa.local_epochs", 5, "local_epochs: sgd makes one step a round"),
        ("baselines.model", "gpt", "baselines.model: 'gpt' is not in zoo.models"),
        ("zoo.models.opt.heads", 7, "zoo.models.opt.hidden_size 72 is not a multiple of heads 7"),
        ("study.full.precision.fitted", "base", "fitted: unknown key, did you mean 'fitted_on'?"),
        ("assembling.assyllm.selection.beem", 6, "selection.beem: unknown key, did you mean 'beam'?"),
        ("zoo.models.opt.hedas", 6, "zoo.models.opt.hedas: unknown key, did you mean 'heads'?"),
        ("zoo.models.vicuna.continued_from", "lama", "zoo.models.vicuna.continued_from: 'lama' is not"),
        ("zoo.models.llama.source", "local", "zoo.models.llama.path: needed when its source is local"),
        ("fleet.memory_gb", {0: 0.5, 8: 0.5}, "fleet.memory_gb.0.[key]: Input should be greater than or equal to 1"),
        ("fleet.memory_gb", {64: 0.5}, "fleet.memory_gb: the shares sum to 0.5, not 1"),
        (
            "settings.opt",
            {"baselines.modle": "opt"},
            "settings.opt: baselines.modle: unknown key, did you mean",
        ),
        (
            "study.default.runs",
            {"nope": ["majority"]},
            "study.default.runs.nope: no such entry under settings",
        ),
        ("study.default.runs", {"base": ["loraa"]}, "study.default.runs.base.0: Input should be"),
        ("study.default.runs", {"base": []}, "study.default.runs.base: List should have at least 1 item"),
        ("study.default.seeds", [-1], "study.default.seeds.0: Input should be greater than or equal to 0"),
        ("study.default.seeds", [0, 1, 0], "study.default.seeds: 0 stands there twice"),
        ("study.full.runs", {"base": ["lora", "lora"]}, "study.full.runs.base: lora stands there twice"),
        ("federated.least_clients", 30, "federated.least_clients: 30 is more than federated.clients_per_round (20)"),
        ("tasks.max_tokens.piqa", 65, "tasks.max_tokens.piqa: 65 is more than the 64 positions of bert"),
        ("partition.alpha", float("inf"), "partition.alpha: Input should be a finite number"),
        ("assembling.assyllm_paper.selection.survivors", 0.5, "survivors: 0.5 goes with a rule that reads labels"),
        (
            "assembling.assyllm.adapter",
            {"kind": "cross_attention", "ridge": 0.1, "tuning": "local"},
            "assembling.assyllm.adapter.tuning: local does not go with a survey, which joins nothing",
        ),
        (
            "assembling.assyllm",
            {
                "selection": {
                    "rule": "probe",
                    "enter": "text",
                    "evaluated_per_round": None,
                    "kept_per_round": 2,
                    "beam": 2,
                    "rounds_per_block": 1,
                    "max_blocks": 4,
                },
                "adapter": {"kind": "cross_attention", "ridge": 0.1, "tuning": "end_to_end"},
                "head": {"scope": "all_blocks", "ridge_grid": [1.0], "rounds": 1},
            },
            "assembling.assyllm.adapter.tuning: end_to_end does not go with enter: text",
        ),
        ("blocks.members", [], "blocks.members: List should have at least 1 item"),
        ("sensitivity.moments", False, "sensitivity.moments: false, but quantize.rounding: compensated takes them"),
        ("settings.a b", {}, "settings.a b.[key]: String should match pattern"),
        ("settings.base", {"partition.alpha": 3.0}, "settings.base: empty by definition"),
        ("zoo.models.opt.key_value_heads", 4, "zoo.models.opt.key_value_heads 4 does not divide heads 6"),
        ("zoo.models.vicuna.layers", 9, "zoo.models.vicuna.layers: 9, but llama, which it continues, has 4"),
        ("zoo.models.vicuna.vocabulary", 500, "zoo.models.vicuna.vocabulary: 500, but llama, which it continues"),
        ("comparator.shards", 201, "comparator.shards: 201 is more than partition.clients (200)"),
        ("tune.seed", 1, "tune.seed: 1 is a seed of study.default"),
        ("tune.seed", -1, "tune.seed: Input should be greater than or equal to 0"),
        ("quantize.budget_bits", 40.0, "quantize.budget_bits: Input should be less than or equal to 16"),
        ("quantize.score", "noise", "quantize.score: 'noise', which is not in sensitivity.scores"),
        ("evaluate.bootstrap_samples", 1, "evaluate.bootstrap_samples: Input should be greater than or equal to 100"),
        ("evaluate.interval", 0.0, "evaluate.interval: Input should be greater than 0"),
        (
            "baselines.fedadapter.boolq.width",
            2000,
            "fedadapter.boolq.width: Input should be less than or equal to 1024",
        ),
        ("baselines.fwdllm.boolq.directions", 8, "directions: 8 is more than max_directions (4)"),
        ("baselines.fwdllm.boolq.optimizer", "adamw", "optimizer: adamw; a device sends an estimate and makes no step"),
    ],
)
def test_one_line_names_the_key(tmp_path: Path, key: str, value: object, words: str) -> None:
    with pytest.raises(P.ParamsError) as caught:
        P.load(changed(tmp_path, key, value))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not words.endswith(")") or str(caught.value).endswith(words), "one thing is wrong, not several"


def test_a_misspelt_key_goes_before_what_it_leaves_missing(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"^  alpha:", "  alhpa:", (ROOT / "params.yaml").read_text(), flags=re.M))
    with pytest.raises(P.ParamsError, match=r"partition\.alhpa: unknown key, did you mean 'alpha'\? \(and 1 more\)"):
        P.load(path)


def test_missing_doubled_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(P.ParamsError, match="No such file"):
        P.load(path)
    path.write_text("world: {seed: 0, seed: 1}\n")
    with pytest.raises(P.ParamsError, match="seed: given twice"):
        P.load(path)
    path.write_text("world: [\n")
    with pytest.raises(P.ParamsError, match=r"params\.yaml: "):
        P.load(path)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    del raw["evaluate"]
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(P.ParamsError, match="evaluate: missing"):
        P.load(path)


def test_files_that_are_no_text_and_keys_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes("world:\n  name: é\n".encode("latin-1"))
    with pytest.raises(P.ParamsError, match="line 2: not UTF-8"):
        P.load(path)
    path.write_text("? [a, b]\n: 1\n")
    with pytest.raises(P.ParamsError, match="not a key"):
        P.load(path)
    for text, words in (
        ("a: 2024-01-01", "read as a date"),
        ("a: 2024-13-01", "month must be"),
        ("a: !!set {x}", "a set"),
    ):
        path.write_text(text)
        with pytest.raises(P.ParamsError, match=rf"params\.yaml: .*{words}"):
            P.load(path)
    path.write_text("a: &x {b: 1}\nc: {<<: *x, d: 2}\n")
    assert P.read_yaml(path)["c"] == {"b": 1, "d": 2}


def test_what_a_stage_gets_it_can_read() -> None:
    plan = Plan(ROOT / "params.yaml")
    for rule in RULES:
        P.parse_sections(plan.sections(rule), stage_module(rule).SECTIONS)
    for text in ("3", "null", '[1, "a"]', "{}"):
        with pytest.raises(P.ParamsError, match=r"--params: sections .* given, \['figures'\] expected"):
            P.parse_sections(text, ["figures"])


def test_a_setting_may_set_what_has_a_default(tmp_path: Path) -> None:
    params = P.load(changed(tmp_path, "settings.other", {"baselines.ft_oracle.boolq.optimizer": "momentum"}))
    raw = P.read_yaml(tmp_path / "params.yaml")
    assert P.with_setting(raw, "other").baselines.ft_oracle["boolq"].optimizer == "momentum"
    assert params.baselines.ft_oracle["boolq"].optimizer == "sgd"


def test_a_figure_that_is_none_is_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(P.ParamsError, match=r"figures\.names: no figure 'memory_wal', did you mean 'memory_wall'"):
        Plan(changed(tmp_path, "figures.names", ["memory_wal"]))


def test_a_members_name_is_that_of_a_module(tmp_path: Path) -> None:
    models = P.read_yaml(ROOT / "params.yaml")["zoo"]["models"]
    with pytest.raises(P.ParamsError, match=r"^zoo\.models\.llama-3\.2"):
        P.load(changed(tmp_path, "zoo.models", models | {"llama-3.2": models["llama"]}))


def test_what_a_study_asks_of_its_pool_is_checked_before_anything_runs(tmp_path: Path) -> None:
    ours = P.read_yaml(ROOT / "params.yaml")["assembling"]["assyllm"]
    linear = ours | {"selection": ours["selection"] | {"rule": "probe"}, "adapter": {"kind": "linear", "ridge": 0.01}}
    crossed = linear | {"adapter": {"kind": "cross_attention", "ridge": 0.01}}
    paper = ours | {"selection": ours["selection"] | {"rule": "paper", "survivors": 1.0, "enter": "adapter"}}
    for key, value, why in (
        ("blocks.members", ["bert"], r"^features\.pairs: '\w+' is not in blocks\.members$"),
        ("assembling.assyllm", linear, r"^study\.default\.runs\.base: untrained_blocks does not go with .*linear"),
        ("assembling.assyllm", crossed, r"untrained_blocks does not go with .*cross_attention, which is fitted"),
        (
            "assembling.assyllm",
            paper,
            r"selection\.rule: paper has no variant for \w+_blocks, as survey and probe have",
        ),
    ):
        path = changed(tmp_path, key, value)
        with pytest.raises(P.ParamsError, match=why):
            Plan(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("evaluate.bootstrap_samples", 100), ("study.default.seeds", [7]), ("figures.dpi", 50), ("cost.device", "orin")],
)
def test_a_setting_that_no_run_reads_is_none(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(P.ParamsError, match=rf"^settings\.other\.{key}: no run reads it"):
        Plan(changed(tmp_path, "settings.other", {key: value}))


def test_what_is_not_in_params_is_named_when_it_is_asked_for(tmp_path: Path) -> None:
    plan = Plan(changed(tmp_path, "study.non_iid", None))
    with pytest.raises(P.ParamsError, match=r"^study\.non_iid: not in params\.yaml"):
        plan.runs("non_iid")
    with pytest.raises(P.ParamsError, match=r"^settings: no entry 'alpha_0\.2', did you mean 'alpha_0\.[15]'\?"):
        plan.variant("partition", "alpha_0.2")
    study = P.read_yaml(ROOT / "params.yaml")["study"]["default"] | {"runs": {"base": ["lora"]}, "precision": None}
    with pytest.raises(P.ParamsError, match=r"^study\.default\.runs\.base: no method that assembles, but figure "):
        Plan(changed(tmp_path, "study.default", study))


def test_a_stage_reads_its_sections_and_no_other() -> None:
    params = P.load(ROOT / "params.yaml")
    text = P.sections_json(params, ("partition",))
    sections = P.parse_sections(text, ("partition",))
    assert sections.partition == params.partition
    assert not hasattr(sections, "tasks")
    with pytest.raises(P.ParamsError, match="sections"):
        P.parse_sections(text, ("partition", "tasks"))


def test_settings_apply_and_name_themselves() -> None:
    raw = P.read_yaml(ROOT / "params.yaml")
    assert P.with_setting(raw, "opt").baselines.model == "opt"
    assert P.setting_text(raw, "opt") == 'baselines.model="opt"'
    assert P.setting_text(raw, "opt", zoo_seed=2) == 'baselines.model="opt" zoo.seed=2'
    assert P.setting_text(raw, "base") == ""
    raw["settings"]["lists"] = {"assembling.assyllm.head.ridge_grid": [0.1, 1.0], "zoo.pretrain.corpus": "a b=c.txt"}
    for setting in raw["settings"]:
        assert P.setting_values(P.setting_text(raw, setting)) == (raw["settings"][setting] or {})
