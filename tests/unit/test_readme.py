"""README's numbers are the tables': generated parts in step, numbers in the prose beside them to be found there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from assyllm import params as P
from assyllm import readme
from assyllm.artifacts import ArtifactError
from assyllm.claims.shown import all_claims
from assyllm.results import read_table
from assyllm.study import Plan

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "data" / "results"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
DECIMAL = re.compile(r"(?<![\w.])-?\d*\.\d+(?![\w.]*\d)")


def prose(text: str) -> str:
    """The section of results without what is generated."""
    section = text.partition("## Results\n")[2].partition("\n### Figures and tables")[0]
    return re.sub(r"<!-- (\w+): from the tables -->.*?<!-- \1: end -->", "", section, flags=re.S)


def known() -> set[str]:
    """Every number that the tables give, as README may write it."""
    found = set()
    for study in ("", "full", "zoos", "worlds", "choosing", "non_iid", "dropouts"):
        for row in read_table(RESULTS / study / "accuracy.csv"):
            found |= {readme.share(float(row[key])) for key in ("mean", "low", "high")}
    for row in read_table(ROOT / "benchmarks" / "language_zoo_fifth_seeds.csv"):
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
    assert set(re.findall(r"<!-- (\w+): from the tables -->", TEXT)) == set(readme.PARTS)
    assert readme.filled(TEXT, RESULTS) == TEXT, "run `make readme`"


def test_parameters_are_in_step() -> None:
    made = readme.parameters((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "PARAMETERS.md").read_text(encoding="utf-8") == made, "run `make readme`"
    missing = [name for name in P.Params.model_fields if name not in ("study", "settings") and f"## {name}" not in made]
    assert not missing
    assert "| `clients` | `200` |  | 200 |" in made


@pytest.mark.committed
def test_numbers_in_the_prose_are_the_tables() -> None:
    assert not wrong(TEXT)


@pytest.mark.committed
@pytest.mark.parametrize("rounds", ["", "=2", "=1"])
def test_shares_of_energy_in_the_prose_are_those_of_five_seeds(rounds: str) -> None:
    rows = {
        row["task"]: row
        for row in read_table(RESULTS / "full" / "tradeoff.csv")
        if (row["method"], row["what"]) == ("assyllm", "energy_of_full") and row["setting"][-2:] == rounds
    }
    first, second, third = (readme.rounded(100 * float(rows[task]["value"]), 0) for task in readme.TASKS)
    assert f"{first}, {second} and {third} %" in " ".join(prose(TEXT).split())


@pytest.mark.committed
def test_readme_counts_the_runs_of_every_study() -> None:
    plan, text = Plan(ROOT / "params.yaml"), (ROOT / "README.md").read_text()
    told = re.findall(r"^snakemake --cores 2 (\w* *)# .* (\d+) runs$", text, flags=re.M)
    found = {name.strip() or "default": int(runs) for name, runs in told}
    assert found == {size: len(plan.runs(size)) for size in P.STUDIES if size != "check"}


@pytest.mark.committed
def test_a_wrong_number_is_found() -> None:
    assert wrong(TEXT.replace("## Results\n", "## Results\n\nabove by 77.7 points, .0123\n")) == ["77.7", ".0123"]
    first = re.search(r"\| \.\d{3} \(", TEXT)
    assert first is not None
    assert readme.filled(TEXT.replace(first[0], "| .000 (", 1), RESULTS) == TEXT


def test_an_unknown_or_open_part_is_one_line() -> None:
    with pytest.raises(ArtifactError, match="no part called 'nope'; known: accuracy"):
        readme.filled("<!-- nope: from the tables -->\n<!-- nope: end -->", RESULTS)
    with pytest.raises(ArtifactError, match="has no <!-- accuracy: end -->"):
        readme.filled("<!-- accuracy: from the tables -->\n", RESULTS)


def test_halves_round_up() -> None:
    assert [readme.share(v) for v in (0.6345, 0.8095, 0.774)] == [".635", ".810", ".774"]
    assert (readme.points("0.1325"), readme.points("-0.0004")) == ("13.3", "0.0")


@pytest.mark.parametrize(
    ("command", "jobs", "minutes"),
    [
        ("assyllm estimate --model llama-7b --method lora --batch 16", 0, None),
        ("snakemake --cores 2 data/runs/base/{lora,swapping}/zoo0_seed{0,1}", 9, "4.0"),
        ("snakemake --cores 2 data/runs/base/assyllm/zoo0_seed{0,1}", 0, None),  # seed 1 was not run
        ("snakemake --cores 2 data/cost/base/{lora,nothing}.csv", 1, "0.5"),
        ("snakemake --cores 2 ablations", 0, None),
        ("snakemake --cores 2 results", 0, None),
    ],
)
def test_minutes_are_those_of_a_command_s_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, jobs: int, minutes: str | None
) -> None:
    seconds = {
        "download/base/seed0/llama.tsv": 60, "download/base/seed1/llama.tsv": 999, "tasks/base.tsv": 30,
        "cost/base/lora.tsv": 30, "baseline/base/lora/zoo0_seed0.tsv": 40, "baseline/base/lora/zoo0_seed1.tsv": 20,
        "baseline/base/ft_oracle/zoo0_seed0.tsv": 30, "baseline/base/ft_oracle/zoo0_seed1.tsv": 10,
        "baseline/base/swapping/zoo0_seed0.tsv": 10, "baseline/base/swapping/zoo0_seed1.tsv": 10,
        "baseline/base/lora/zoo0_seed2.tsv": 999, "federate/base/assyllm/zoo0_seed0.tsv": 999,
    }  # fmt: skip
    for name, value in seconds.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"s\tmax_rss\n{value}\t-\n")
    monkeypatch.setattr(readme, "all_claims", lambda results: [{"command": command}])
    rows = readme.minutes_rows(tmp_path, tmp_path, Plan(ROOT / "params.yaml"))
    assert [(r["jobs"], r["minutes"]) for r in rows] == ([(jobs, minutes)] if jobs else [])
