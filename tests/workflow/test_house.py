"""The house stands: floors, declared code, files in step with each other."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from assyllm import params as P
from assyllm import study
from assyllm.figures import reads
from assyllm.results import read_table

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "assyllm"
# imports run only downward: a room may import from its own line and from those above it
FLOORS = (
    ("params", "results", "artifacts", "seeding", "checkpoint"),
    ("tasks",),
    ("zoo",),
    ("hub",),
    ("blocks",),
    ("quantizer", "swapper"),
    ("comparator",),
    ("adapter",),
    ("evaluate",),
    ("assembly",),
    ("federated", "baselines"),
    ("cost", "features"),
    ("claims", "precision", "collect", "reproduced"),
    ("figures",),
    ("stages", "bench"),
    ("needs", "study", "readme", "show", "cli", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
LIGHT = (
    "params",
    "results",
    "artifacts",
    "seeding",
    "claims",
    "precision",
    "collect",
    "reproduced",
    "evaluate",
    "figures",
    "needs",
    "study",
    "readme",
    "show",
    "cli",
)
HEAVY = {"torch", "transformers", "bitsandbytes", "peft", "datasets", "accelerate"}


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports (names imported from packages resolved to modules)."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def as_file(name: str) -> Path | None:
    """The source file of ``assyllm.x.y``, if it is a module of ours."""
    path = SOURCE.joinpath(*name.split(".")[1:])
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def ours(path: Path) -> set[Path]:
    files = {as_file(name) for name in imports(path) if name.startswith("assyllm.")}
    return {file for file in files if file is not None}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_only_downward(path: Path) -> None:
    if path == SOURCE / "__init__.py":
        assert not ours(path)
        return
    assert room(path) in LEVEL, f"{room(path)} has no floor: add it to FLOORS and to ARCHITECTURE.md"
    for target in ours(path):
        if target.name == "__init__.py" and target.parent == SOURCE:
            continue
        assert LEVEL[room(target)] <= LEVEL[room(path)], f"{path} climbs to {target}"
        same_floor = LEVEL[room(target)] == LEVEL[room(path)] and room(target) != room(path)
        assert not (
            same_floor and {room(path), room(target)} == {"federated", "baselines"} and room(path) == "federated"
        ), f"{path}: federated knows nothing of baselines"


@pytest.mark.parametrize("path", [p for p in modules() if room(p) in LIGHT], ids=lambda p: p.name)
def test_light_rooms_import_nothing_heavy(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & HEAVY


@pytest.mark.parametrize("rule", study.RULES)
def test_stages_are_light_and_hang_on_what_they_read(rule: str) -> None:
    """A stage's imports are found by themselves; tables of facts that these read are to be named in its CODE."""
    stage = SOURCE / "stages" / f"{rule}.py"
    assert not {name.split(".")[0] for name in imports(stage, top_level_only=True)} & HEAVY
    named = getattr(study.stage_module(rule), "CODE", ())
    assert all((SOURCE / name).is_file() for name in named)
    files = study.executed(f"stages/{rule}.py")
    assert all(
        ours(file) - files <= {f for f in ours(file) if f.name == "__init__.py" or room(f) in study.NOT_CODE}
        for file in files
    )
    texts = [file.read_text() for file in files]
    beside = [text for text in texts if "__file__" in text or "importlib.resources" in text]  # who reads beside itself
    for table in (*SOURCE.rglob("*.csv"), *SOURCE.rglob("*.json")):
        names = re.compile(rf'"([\w/]+/)?{re.escape(table.name)}"')
        if any(names.search(text) for text in beside):
            assert str(table.relative_to(SOURCE)) in named, f"stage {rule} reads {table.name}"


def test_a_hash_follows_what_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a copy of the sources: an edit far down changes the rules that reach it, and no other."""
    copy = tmp_path / "assyllm"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(study, "SOURCE", copy)

    def hashes() -> dict[str, str]:
        study.imported.cache_clear()
        study.code_sha.cache_clear()
        rules = {rule: study.code_sha(rule) for rule in study.RULES}
        return rules | {name: study.code_sha("figure", name) for name in ("memory_wall", "claims")}

    try:
        before = hashes()
        for file, changed in (
            ("swapper/ablation.py", {"swap"}),
            ("claims/table.py", {"collect", "claims"}),
            ("cost/devices.csv", {"cost", "collect", "figure", "memory_wall", "claims"}),
            ("figures/memory_wall.py", {"memory_wall"}),
            ("cli.py", set()),
        ):
            with open(copy / file, "a") as handle:
                handle.write("\n")
            now = hashes()
            assert {name for name in now if now[name] != before[name]} == changed, file
            before = now
    finally:
        study.imported.cache_clear()
        study.code_sha.cache_clear()


@pytest.mark.parametrize("path", sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests" / "gpu").glob("*.py")]),
                         ids=lambda p: p.name)  # fmt: skip
def test_scripts_that_no_test_runs_import_what_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("assyllm"):
            continue
        file = SOURCE.joinpath(*(node.module or "").split(".")[1:])
        defined = ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text()).body
        made = [target for n in defined if isinstance(n, ast.Assign) for target in n.targets]
        made += [n.target for n in defined if isinstance(n, ast.AnnAssign)]
        names = {name.id for target in made for name in ast.walk(target) if isinstance(name, ast.Name)}
        names |= {getattr(n, "name", "") for n in defined}
        names |= {alias.asname or alias.name for n in defined if isinstance(n, ast.ImportFrom) for alias in n.names}
        names |= {f.stem for f in file.glob("*.py")} | {f.name for f in file.glob("*/")} if file.is_dir() else set()
        assert {alias.name for alias in node.names} <= names, f"{path.name}: {node.module}"


def test_light_imports_do_not_load_torch() -> None:
    code = (
        "import sys, assyllm.cli, assyllm.study, assyllm.params\n"
        "from assyllm.study import RULES, stage_module\n"
        "[stage_module(rule) for rule in RULES]\n"
        f"print([m for m in {sorted(HEAVY)!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_rules_stages_and_verbs_have_the_same_names() -> None:
    text = "".join(p.read_text() for p in (ROOT / "workflow" / "rules").glob("*.smk"))
    rules = set(re.findall(r"^rule (\w+):", text, re.M)) - {"pool", "results", "figures", "redraw", "tuning"}
    stages = {p.stem for p in (SOURCE / "stages").glob("*.py")} - {"__init__"}
    verbs = set(re.findall(r"^@app\.command\(\)\ndef (\w+)", (SOURCE / "cli.py").read_text(), re.M))
    assert rules == stages == set(study.RULES)
    assert stages <= verbs
    for rule in rules:
        assert f'"assyllm {rule} ' in text
        assert f'"logs/{rule}/' in text or f'"logs/{rule}{{study}}/' in text


def test_params_schema_is_in_step() -> None:
    stored = json.loads((ROOT / "workflow" / "schemas" / "params.schema.json").read_text())
    assert stored == json.loads(json.dumps(P.schema())), "run `make schema`"


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*/params.yaml"))], ids=str)
def test_params_files_are_valid_and_explained(path: Path) -> None:
    P.load(path)
    if path.parent == ROOT:
        # named settings hold keys that are explained where they stand
        text = re.sub(r"^settings:.*?(?=^\w)", "", path.read_text(), flags=re.M | re.S)
        unexplained = [line for line in text.splitlines() if re.match(r"^  \w+: \S", line) and "#" not in line]
        assert not unexplained, f"lines without a comment: {unexplained}"


def test_dvc_is_in_step_with_params_and_tables() -> None:
    dvc = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert list(dvc["stages"]) == ["pool", "results", "figures"]
    tracked = {name for stage in dvc["stages"].values() for name in stage["params"]}
    assert tracked | {"tune"} == set(P.Params.model_fields)
    outs = [o for s in dvc["stages"].values() for part in ("outs", "metrics") for o in s.get(part, [])]
    assert all(spec["persist"] for out in outs for spec in out.values()), "without persist DVC deletes outs first"
    read = {s for r in study.RULES if r not in ("figure", "tune") for s in study.stage_module(r).SECTIONS}
    assert read <= set(dvc["stages"]["results"]["params"])
    drawn_from = {table for name in P.load(ROOT / "params.yaml").figures.names for table in reads(name)}
    tables = {d.removeprefix("data/results/") for d in dvc["stages"]["figures"]["deps"] if d.endswith(".csv")}
    assert tables == {f"{table}.csv" for table in drawn_from}
    assert set(dvc["plots"]) == {f"figures/{n}.png" for n in P.load(ROOT / "params.yaml").figures.names}


# states of a stage's code that give equal numbers: the last one made a run of every method again, cell by cell the
# same as the others' (EXPERIMENTS, "Zoos and ablations made again", "Reading the text again", "Own context first",
# "One survey")
EQUAL_STATES = [
    {"d8a6a0fb5da1", "3efe0a89564d", "4d6eb8794390", "5b3ea61746d9", "a210449ad868", "31914cf13843", "9ce15cbe4052"},
    {"7b3146dcc81b", "ca4a80c6565a", "b17c5cbba907", "25f487b27f4b"},  # assyllm; a survey is of the last two
    {"9fe9c096ac60", "3fce8300b6d1", "e8449296ee3f", "7b3146dcc81b", "25f487b27f4b", "5b7faee49603"},  # assyllm_paper
]


@pytest.mark.committed
@pytest.mark.parametrize("table", sorted((ROOT / "data" / "results").glob("**/runs.csv")), ids=lambda p: p.parent.name)
def test_a_study_is_of_one_state_of_the_code(table: Path) -> None:
    states: dict[str, set[str]] = {}
    for row in read_table(table):
        states.setdefault(row["method"], set()).add(row["code_sha"])
    assert states, "no runs"
    mixed = [m for m, found in states.items() if len(found) > 1 and not any(found <= same for same in EQUAL_STATES)]
    assert not mixed, f"make all of {table.parent.name} again"


def test_environment_is_in_step_with_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["dev"]}
    names = {"torch": "pytorch", "types-PyYAML": "types-pyyaml"}
    wanted = {re.sub(r"^[\w-]+", lambda m: names.get(m[0], m[0]), spec) for spec in wanted}
    conda = {d for d in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]}
    assert conda - {"pip", "python>=3.11"} == wanted


@pytest.mark.parametrize("page", ["README.md", "docs/RESULTS.md", "ARCHITECTURE.md", "EXPERIMENTS.md"])
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text()
    links = set(re.findall(r"\]\((?!https?:)([^)#]*)(?:#[\w-]*)?\)", text))
    assert not [link for link in links if link and not (ROOT / page).parent.joinpath(link).exists()]
    titles = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^#+ (.*)$", text, flags=re.M)}
    assert set(re.findall(r"\]\(#([\w-]*)\)", text)) <= titles


def test_readme_names_only_what_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"[`(]((?:src|tests|workflow|presets|profiles|figures|data|benchmarks)/[\w./-]*)[`)]", text))
    named |= set(re.findall(r"[`(]([A-Z][A-Za-z]+\.(?:md|cff))[`)]", text))
    folders = ["zoo", "pool", "quantized", "tasks", "partition", "cost", "scores", "runs", "checkpoints", "external"]
    folders += [
        "tuning",
        "results/full",
        "results/zoos",
        "results/worlds",
        "results/choosing",
        "results/ablations",
        "results/non_iid",
        "results/dropouts",
    ]
    made = {
        *(f"data/{name}" for name in folders),
        "figures/full",
        "figures/ablations",
        "figures/choosing",
        "figures/non_iid",
        "figures/dropouts",
    }
    missing = [n for n in sorted(named) if not (ROOT / n).exists() and n.rstrip("/") not in made]
    assert not missing


def test_tracked_files_are_small_and_hold_no_machine_paths() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = ROOT / name
        if not path.is_file():
            continue
        assert path.stat().st_size < 4_000_000, f"{name}: belongs under DVC"
        if path.suffix in (".py", ".md", ".yaml", ".smk", ".toml", ".csv"):
            assert not re.search(r"(?<![\w.])/(home|root|Users)/\w", path.read_text()), f"{name}: a machine's path"
