"""The pages' numbers are the tables': generated parts in step, numbers in the prose beside them to be found there."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path

import pytest

from assyllm import params as P
from assyllm import readme
from assyllm.artifacts import ArtifactError
from assyllm.claims.shown import all_claims
from assyllm.results import read_table, write_table
from assyllm.study import Plan

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "data" / "results"
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in readme.PAGES}
README, FOUND = TEXTS.values()
DECIMAL = re.compile(r"(?<![\w.])-?\d*\.\d+(?![\w.]*\d)")


def prose(text: str) -> str:
    """What is said of results, without what is generated."""
    section = text.partition("# Results\n")[2].partition("\n### Figures and tables")[0]
    return re.sub(r"<!-- (\w+): from the tables -->.*?<!-- \1: end -->", "", section, flags=re.S)


@cache
def known() -> set[str]:
    """Every number that the tables give, as README may write it."""
    found = set()
    for study in ("", "full", "zoos", "worlds", "choosing", "non_iid", "dropouts"):
        for row in read_table(RESULTS / study / "accuracy.csv"):
            found |= {readme.share(float(row[key])) for key in ("mean", "low", "high")}
    for row in read_table(ROOT / "benchmarks" / "language_zoo_fifth_seeds.csv"):
        found.add(readme.share(float(row["test"])))
    for row in read_table(ROOT / "benchmarks" / "check_sums.csv"):
        found.add(readme.share(float(row["test"])))
    for row in read_table(ROOT / "benchmarks" / "language_zoos.csv"):
        found.add(readme.share(float(row["accuracy"])))
        found |= {readme.points(row[key]) for key in ("assyllm_above", "low", "high") if row[key]}
    for study in ("ablations", "choosing"):
        for row in read_table(RESULTS / study / "ablations.csv"):
            found.add(readme.share(float(row["mean"])))
            found |= {readme.points(row[f"difference{end}"]) for end in ("", "_low", "_high") if row["difference"]}
    for row in read_table(RESULTS / "non_iid" / "non_iid.csv"):
        found |= {readme.points(row[key]) for key in ("drop", "drop_low", "drop_high") if row[key]}
    for folder in (RESULTS, RESULTS / "full", RESULTS / "zoos"):
        for row in read_table(folder / "differences.csv"):
            found |= {readme.points(row[key]) for key in ("difference", "low", "high")}
    for study in ("zoos", "worlds", "choosing"):
        for row in read_table(RESULTS / study / "zoos.csv"):
            found |= {readme.points(row[key]) for key in ("behind", "low", "high") if row[key]}
    for row in read_table(RESULTS / "full" / "quantizer.csv"):
        ends = ("difference", "difference_low", "difference_high", "over_int4", "over_int4_low", "over_int4_high")
        found |= {readme.points(row[key]) for key in ends if row[key]}
        found |= {readme.rounded(row["bits"], 1)} if row["bits"] else set()
    for row in [*all_claims(RESULTS), *read_table(RESULTS / "claims.csv")]:
        found |= {readme.number(row[key]) for key in ("paper_value", "our_value", "low", "high")}
    return found | {value.removeprefix("-") for value in found}


def wrong(text: str) -> list[str]:
    return [number for number in DECIMAL.findall(prose(text)) if number not in known()]


@pytest.mark.committed
def test_generated_parts_are_in_step_with_the_tables() -> None:
    assert set(re.findall(r"<!-- (\w+): from the tables -->", README + FOUND)) == set(readme.PARTS)
    for page, text in TEXTS.items():
        assert readme.filled(page, text, RESULTS) == text, "run `make readme`"


@pytest.mark.committed
def test_parameters_are_in_step() -> None:
    made = readme.parameters((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "PARAMETERS.md").read_text(encoding="utf-8") == made, "run `make readme`"
    missing = [name for name in P.Params.model_fields if name not in ("study", "settings") and f"## {name}" not in made]
    assert not missing
    assert "| `clients` | `200` |  | 200 |" in made


@pytest.mark.committed
@pytest.mark.parametrize("page", TEXTS)
def test_numbers_in_the_prose_are_the_tables(page: str) -> None:
    assert not wrong(TEXTS[page])


@pytest.mark.committed
@pytest.mark.parametrize("rounds", ["", "=2", "=1"])
def test_shares_of_energy_in_the_prose_are_those_of_five_seeds(rounds: str) -> None:
    rows = {
        row["task"]: row
        for row in read_table(RESULTS / "full" / "tradeoff.csv")
        if (row["method"], row["what"]) == ("assyllm", "energy_of_full") and row["setting"][-2:] == rounds
    }
    first, second, third = (readme.rounded(100 * float(rows[task]["value"]), 0) for task in P.PUBLISHED)
    assert f"{first}, {second} and {third} %" in " ".join(prose(FOUND).split())
    assert rounds or f"{first}, {second} and {third} %" in " ".join(prose(README).split())


@pytest.mark.committed
def test_readme_counts_the_runs_of_every_study() -> None:
    plan = Plan(ROOT / "params.yaml")
    told = re.findall(r"^snakemake --cores 2 (\w* *)# .* (\d+) runs$", README, flags=re.M)
    found = {name.strip() or "default": int(runs) for name, runs in told}
    assert found == {size: len(plan.runs(size)) for size in P.STUDIES if size != "check"}


@pytest.mark.committed
def test_a_wrong_number_is_found() -> None:
    for page, text in TEXTS.items():
        assert wrong(text.replace("# Results\n", "# Results\n\nabove by 77.7 points, .0123\n")) == ["77.7", ".0123"]
        first = re.search(r"\| \.\d{3} \(", text)
        assert first is not None
        assert readme.filled(page, text.replace(first[0], "| .000 (", 1), RESULTS) == text


def test_an_unknown_or_open_part_is_one_line() -> None:
    with pytest.raises(ArtifactError, match=r"README\.md: no part called 'nope'; known: accuracy"):
        readme.filled("README.md", "<!-- nope: from the tables -->\n<!-- nope: end -->", RESULTS)
    with pytest.raises(ArtifactError, match="has no <!-- accuracy: end -->"):
        readme.filled("README.md", "<!-- accuracy: from the tables -->\n", RESULTS)


def test_halves_round_up() -> None:
    assert [readme.share(v) for v in (0.6345, 0.8095, 0.774)] == [".635", ".810", ".774"]
    assert (readme.points("0.1325"), readme.points("-0.0004")) == ("13.3", "0.0")


def test_minutes_are_those_of_a_command_s_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = "snakemake --cores 2 data/runs/alpha_0.1/{lora,swapping}/zoo0_seed{0,1}"
    seconds = {
        "download/base/seed0/llama": 60, "download/base/seed1/llama": 999, "tasks/base": 30,
        "partition/alpha_0.1/seed0": 10, "partition/alpha_0.1/seed1": 10, "partition/base/seed0": 999,
        "cost/base/lora": 20, "cost/base/swapping": 10, "cost/base/ft_oracle": 10,
        "baseline/alpha_0.1/lora/zoo0_seed0": 40, "baseline/alpha_0.1/lora/zoo0_seed1": 20,
        "baseline/alpha_0.1/lora/zoo0_seed2": 999, "federate/base/assyllm/zoo0_seed0": 999,
        "baseline/alpha_0.1/ft_oracle/zoo0_seed0": 30, "baseline/alpha_0.1/ft_oracle/zoo0_seed1": 10,
        "baseline/alpha_0.1/swapping/zoo0_seed0": 5, "baseline/alpha_0.1/swapping/zoo0_seed1": 5,
    }  # fmt: skip
    seconds |= {f"download/base/seed0/{name}": 999 for name in ("vicuna", "opt", "bert", "roberta")}
    for name, value in seconds.items():
        path = tmp_path / "logs" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\tmax_rss\n{value}\t-\n")
    for name in ("Snakefile", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    kept = {"command": "snakemake --cores 2 full", "jobs": 252, "minutes": "139.1", "max_mb": 1, "source": "measured"}
    write_table(tmp_path / "data" / "results" / "minutes.csv", [kept])  # of whose jobs most are not here
    commands = [made, kept["command"], "assyllm estimate --model llama-7b"]
    monkeypatch.setattr(readme, "all_claims", lambda results: [{"command": command} for command in commands])
    rows = [(r["command"], int(r["jobs"]), r["minutes"]) for r in readme.minutes_rows(tmp_path)]
    assert rows == [(made, 13, "4.3"), (kept["command"], 252, "139.1")]
    monkeypatch.setattr(readme, "all_claims", lambda results: [{"command": "snakemake --cores 2 nothing"}])
    with pytest.raises(ArtifactError, match=r"^snakemake --cores 2 nothing: .*nothing"):
        readme.minutes_rows(tmp_path)
