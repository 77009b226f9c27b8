"""The plan of a study: which runs there are, which parameters each rule reads, where its files lie.

The Snakefile asks this module; it holds no logic of its own. No torch.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from assyllm import params as P
from assyllm.artifacts import sha256_text, write_text
from assyllm.figures import TOPICS, reads
from assyllm.results import FIGURE_TABLES, RunKey
from assyllm.stages.download import in_local_data

RULES = (
    "download", "tasks", "split", "sensitivity", "quantize", "partition", "cost",
    "score", "baseline", "federate", "precision", "swap", "features", "tune", "collect", "figure",
)  # fmt: skip
RUNNING = RULES[: RULES.index("federate") + 1]  # those that a run comes from
# a rule's upstream rules: their parameters decide its variant too
READS = {
    "split": ("download",),
    "sensitivity": ("split", "tasks"),
    "quantize": ("split", "sensitivity"),
    "partition": ("tasks",),
    "score": ("quantize", "partition"),
}
# changing how parameters are parsed or paths planned changes no result: a stage's values are in its JSON. What else of
# params/ decides a result (the rule of a control, what is rounded) is in the CODE of the stages that ask it
NOT_CODE = ("params", "study.py", "cli.py")
SOURCE = Path(__file__).parent
LARGE = 2**24


def stage_module(rule: str) -> Any:
    """The stage behind a rule: same name, light to import."""
    return importlib.import_module(f"assyllm.stages.{rule}")


def unread(rule: str) -> dict[str, Any]:
    """Keys of a stage's sections that it does not read, with the constant that stands there: no edit re-runs it."""
    return getattr(stage_module(rule), "UNREAD", {})


@cache
def imported(file: Path) -> frozenset[Path]:
    """The modules of ours that a source file imports, at its top or anywhere in it (:data:`NOT_CODE` aside)."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    paths = (name.split(".")[1:] for name in names if name.startswith("assyllm."))
    found = {SOURCE.joinpath(*path).with_suffix(".py") for path in paths if path}
    return frozenset(f for f in found if f.relative_to(SOURCE).parts[0] not in NOT_CODE and f.is_file())


def executed(*names: str) -> set[Path]:
    """Some source files (by their paths in the package), and all that they import of ours, and so on."""
    found: set[Path] = set()
    todo = [SOURCE / name for name in names]
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += imported(file)
    return found


@cache
def code_sha(rule: str, figure: str | None = None) -> str:
    """Content hash of the source files that a rule executes; touches do not change it.

    They are what its stage imports, and what that imports; the module of ``figure``, which is imported by its name; and
    what the stage names in ``CODE``: tables of facts, and modules of :data:`NOT_CODE` whose values it asks.
    """
    files = executed(f"stages/{rule}.py", *([f"figures/{figure}.py"] if figure else []))
    files |= {SOURCE / name for name in getattr(stage_module(rule), "CODE", ())}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(str(file.relative_to(SOURCE)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def check_figures(params: P.Params) -> None:
    """Every figure that params name can be drawn.

    Raises:
        ParamsError: naming the first that cannot, and the nearest that can.
    """
    known = [name for names in TOPICS.values() for name in names]
    for key, names in [("figures.names", params.figures.names)] + [
        (f"study.{size}.figures", study.figures or [])
        for size in P.STUDIES
        if (study := getattr(params.study, size)) is not None
    ]:
        for name in names:
            if name not in known:
                raise P.ParamsError(f"{key}: no figure {name!r}{P.nearest(name, known)}")


def contents(*paths: Path | str) -> str:
    """Content hash of those of the files that are there: for what a rule reads and no rule makes.

    Of files beyond :data:`LARGE` bytes (a model's weights) the size and the time of the last change.
    """
    digest = hashlib.sha256()
    for path in (Path(path) for path in paths):
        known = path.stat() if path.is_file() else None
        if known is not None:
            large = known.st_size > LARGE
            digest.update(f"{known.st_size} {known.st_mtime_ns}".encode() if large else path.read_bytes())
        digest.update(b"|")
    return digest.hexdigest()[:12]


class Plan:
    """A checked params.yaml and what follows from it."""

    def __init__(self, path: Path = Path("params.yaml")) -> None:
        self.path = Path(path)
        self.raw = P.read_yaml(self.path)
        self.params = P.checked(self.raw)
        check_figures(self.params)
        self._settings: dict[str, P.Params] = {}
        self._check_settings()
        self._check_pool()
        for size in P.STUDIES:
            if getattr(self.params.study, size) is not None:
                self._check_figures(size)

    def at(self, setting: str) -> P.Params:
        """The params with a named setting applied.

        Raises:
            ParamsError: no such setting, or one that cannot be.
        """
        if setting not in self._settings:
            self.changes(setting)
            self._settings[setting] = P.with_setting(self.raw, setting)
        return self._settings[setting]

    def changes(self, setting: str) -> dict[str, Any]:
        """What a named setting overrides: dotted key -> value.

        Raises:
            ParamsError: no such setting.
        """
        known = self.raw["settings"]
        if setting not in known:
            raise P.ParamsError(f"settings: no entry {setting!r}{P.nearest(setting, known)}")
        found: dict[str, Any] = known[setting]
        return found

    def study(self, size: str) -> P.Study:
        """A study's section.

        Raises:
            ParamsError: params.yaml has none.
        """
        found: P.Study | None = getattr(self.params.study, size)
        if found is None:
            raise P.ParamsError(f"study.{size}: not in params.yaml, so there is nothing to run")
        return found

    def _check_figures(self, size: str) -> None:
        """A run that assembles is there where figures are of one."""
        for name in self.figures(size):
            if {*reads(name)} & {*FIGURE_TABLES}:
                self.walked(size, f"figure {name}, which is of one (figures.names)")

    def _check_settings(self) -> None:
        """Every setting changes something that a run reads, and no two change the same."""
        alike: dict[str, str] = {}
        for setting in self.raw["settings"]:
            other = alike.setdefault(text := self.setting_text(setting, 0), setting)
            if other != setting:  # their runs would be taken for repetitions of one another
                what = "changes nothing, as base does" if not text else f"is the same as {other}"
                raise P.ParamsError(f"settings.{setting}: {what}")
        for setting in self.raw["settings"]:
            for dotted in self.changes(setting):
                if not any(self._reads(rule, dotted) for rule in RUNNING):
                    raise P.ParamsError(f"settings.{setting}.{dotted}: no run reads it, so it is no setting of runs")

    def _check_pool(self) -> None:
        """What studies ask of the pool that only all their settings together tell."""
        members = self.params.blocks.members
        for paired in sorted({name for pair in self.params.features.pairs for name in pair}):
            if members is not None and paired not in members:
                raise P.ParamsError(f"features.pairs: {paired!r} is not in blocks.members")
        for size in P.STUDIES:
            study: P.Study | None = getattr(self.params.study, size)
            curve = study.precision if study is not None else None
            for setting in curve.settings if curve is not None else ():
                for rule, what in (("split", "blocks"), ("tasks", "questions")):
                    if curve is not None and self.variant(rule, setting) != self.variant(rule, curve.fitted_on):
                        raise P.ParamsError(
                            f"study.{size}.precision.settings: {setting!r} has other {what} than {curve.fitted_on!r}, "
                            "whose models are put on its pool"
                        )
            for setting, methods in study.runs.items() if study is not None else ():
                own = self.at(setting).assembling.of("untrained_blocks") if "untrained_blocks" in methods else None
                if own is not None and own.adapter.fitted and own.selection.joins:
                    raise P.ParamsError(
                        f"study.{size}.runs.{setting}: untrained_blocks does not go with assembling.assyllm.adapter."
                        f"kind: {own.adapter.kind}, which is fitted to the states of trained blocks"
                    )

    def sections(self, rule: str, setting: str = "base", method: str | None = None, model: str | None = None) -> str:
        """The JSON that a rule's stage gets: no other baseline's tuning, no other model's shape, nothing unread."""
        dump = json.loads(P.sections_json(self.at(setting), stage_module(rule).SECTIONS))
        for dotted, constant in unread(rule).items():
            section, _, key = dotted.partition(".")
            dump[section][key] = constant
        if model is not None:
            members = dump["zoo"]["models"]
            keep = {model, members[model]["continued_from"]}
            dump["zoo"]["models"] = {name: member for name, member in members.items() if name in keep}
        if rule == "figure":  # which others there are changes none
            dump["figures"]["names"] = ["one"]
        if method is not None:
            self._leave_out(dump, rule, setting, method)
        return json.dumps(dump, sort_keys=True)

    def _leave_out(self, dump: dict[str, Any], rule: str, setting: str, method: str) -> None:
        """Put constants where other methods' runs read: an edit there makes none of this one's anew."""
        if "baselines" in dump:
            own = P.SHARES.get(method, method)
            dump["baselines"] = {k: v for k, v in dump["baselines"].items() if k not in P.TUNED or k == own}
            if rule == "cost" and own in dump["baselines"]:  # a step hangs on its adapters' shape only
                dump["baselines"][own] = P.shapes_of(dump["baselines"][own]) if own in P.LOW_RANK else {}
            if method not in (*P.HEADS, *P.ALL_MODELS):
                dump["baselines"]["closed_form"] = P.CLOSED_FORM
        if "federated" in dump and method not in P.ASSEMBLING:
            dump["federated"] |= {"liars": 0.0, "lie": "votes", "row_norm": None, "max_examples": None}
            dump["federated"] |= {"check_sums": False}
        if "frozen_base" in dump and method not in P.FROZEN_BASE:
            dump["frozen_base"] = {"bits": 16}
        if "assembling" in dump:
            name, _ = P.CONTROLS.get(method, (method, None))
            dump["assembling"] = {name: dump["assembling"][name]}
        if "quantize" in dump and method not in P.ASSEMBLING:
            dump["quantize"] = P.UNQUANTIZED.model_dump(mode="json")
            dump["blocks"]["members"] = None
        if "zoo" in dump:  # of what a model is made is its folder's affair
            names = list(dump["zoo"]["models"]) if rule == "cost" else self.models(setting, method)
            members = {name: dump["zoo"]["models"][name] for name in names}
            shapes = {name: {key: m[key] for key in ("family", "stands_for")} for name, m in members.items()}
            dump["zoo"] |= {"source": "random", "models": shapes, "pretrain": P.PRETRAIN}

    def models(self, setting: str, method: str) -> list[str]:
        """The members of the zoo that a baseline's run is given."""
        params = self.at(setting)
        return list(params.zoo.models) if method in ("zero_shot", *P.ALL_MODELS) else [params.baselines.model]

    def variant(self, rule: str, setting: str) -> str:
        """``base`` if the setting overrides nothing that the rule or its upstream reads, else the setting.

        Settings thus share the zoo, the pool and the partition wherever they can.
        """
        return setting if any(self._reads(rule, dotted) for dotted in self.changes(setting)) else "base"

    def _reads(self, rule: str, dotted: str) -> bool:
        stage = stage_module(rule)
        constant = any(f"{dotted}.".startswith(f"{key}.") for key in unread(rule))
        own = dotted.partition(".")[0] in stage.SECTIONS and not constant
        return own or any(self._reads(upstream, dotted) for upstream in READS.get(rule, ()))

    def setting_text(self, setting: str, zoo: int) -> str:
        """The setting as the result tables write it."""
        return P.setting_text(self.raw, setting, zoo)

    def runs(self, size: str) -> list[RunKey]:
        """Every run of a study (``params.STUDIES``), in a stable order."""
        return list(self._runs(size))

    def _runs(self, size: str) -> Iterator[RunKey]:
        study = self.study(size)
        for setting, methods in study.runs.items():
            for method in methods:
                for zoo in study.zoo_seeds:
                    for seed in study.seeds:
                        yield RunKey(setting, method, zoo, seed)

    def tuned(self) -> list[tuple[str, str]]:
        """What `snakemake tuning` searches: (setting, method) for every model that a study fine-tunes."""
        sizes = [size for size in P.STUDIES if getattr(self.params.study, size) is not None]
        runs = {(run.setting, run.method) for size in sizes for run in self.runs(size)}
        other = [s for s, changes in self.raw["settings"].items() if "baselines.model" in changes]
        told = [m for m in P.TUNED if getattr(self.params.baselines, m)]  # a method that nobody runs may be left out
        return [(s, m) for s in ("base", *other) for m in told if s == "base" or (s, m) in runs]

    def local_tasks(self, setting: str) -> list[Path]:
        """The user's own files of the tasks (``tasks.source: local``), whether they are there or not."""
        tasks = self.at(setting).tasks
        folder = Path(os.environ.get("ASSYLLM_DATA") or tasks.local_dir)
        splits = ("train", "validation", "test") if tasks.source == "local" else ()
        return [folder / task / f"{split}.jsonl" for task in tasks.names for split in splits]

    def local_files(self, setting: str, model: str) -> list[Path]:
        """The user's own files that a model is made from: its folder's, or the corpus that it is pre-trained on."""
        zoo = self.at(setting).zoo
        found = [in_local_data(path) for path in (zoo.models[model].path, zoo.pretrain.corpus)]
        return sorted(
            file
            for path in found
            if path is not None
            for file in (path.iterdir() if path.is_dir() else [path])
            if file.is_file()
        )

    def pools(self, size: str) -> list[tuple[str, int]]:
        """(setting, zoo) of every quantized pool that a study's runs and its accuracy without a re-fit need."""
        curve = self.study(size).precision
        found = {(run.setting, run.zoo) for run in self.runs(size)}
        zoos = {zoo for _, zoo in found}
        return sorted(found | {(setting, zoo) for setting in (curve.settings if curve else []) for zoo in zoos})

    def walked(self, size: str, why: str = "figures of one") -> RunKey:
        """The run that stages ``swap`` and ``features`` look at: the first that assembles, on the base setting.

        Raises:
            ParamsError: the study has none.
        """
        for run in self.runs(size):
            if run.method in P.ASSEMBLING and run.setting == "base":
                return run
        raise P.ParamsError(f"study.{size}.runs.base: no method that assembles, but {why}")

    def precision_tables(self, size: str) -> list[str]:
        """The tables of accuracy without a re-fit: one for each seed and zoo of the runs whose models are taken."""
        curve = self.study(size).precision
        if curve is None:
            return []
        runs = [r for r in self.runs(size) if r.setting == curve.fitted_on and r.method in P.ASSEMBLING]
        return [f"data/precision/{size}/{r.setting}/{r.method}/{r.repetition}.csv" for r in runs]

    def figures(self, size: str) -> list[str]:
        """Names of the figures of a study: its own (there may be none), else those of the section ``figures``."""
        own = self.study(size).figures
        return self.params.figures.names if own is None else own


def kept(text: str, folder: Path = Path(".snakemake/params")) -> str:
    """Keep a job's JSON in a file named by its content; ``@file``, as ``--params`` takes it.

    So a failed job's command is one readable line, and the name changes, and the job runs again, with the content.
    """
    path = folder / f"{sha256_text(text)[:16]}.json"
    if not path.is_file():
        write_text(path, text)
    return f"@{path}"


def job_environment() -> None:
    """Set what every job inherits: this interpreter's ``assyllm`` first, one thread a job, freed memory kept.

    Results must not depend on the number of cores; jobs run side by side instead. A relative ``ASSYLLM_DATA``
    is taken from the shell's folder (``PWD``), not from the study's (``snakemake --directory``).
    """
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # glibc hands freed tensors back to the kernel and faults their pages in again, 1.5 million times in a run of LoRA
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
    if data := os.environ.get("ASSYLLM_DATA"):
        os.environ["ASSYLLM_DATA"] = os.path.normpath(Path(os.environ.get("PWD") or Path.cwd(), data))


_HELD: set[Path] = set()


def hold(folder: Path = Path(".snakemake")) -> None:
    """Hold this working folder until the process ends; a second writer is refused in one line.

    The kernel frees the lock when the process dies, so a killed run leaves nothing to unlock by hand. Asking again
    from the same process is fine.

    Raises:
        BlockingIOError: another process holds it.
    """
    folder = Path(folder).resolve()
    if folder in _HELD:
        return
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder / "assyllm.lock", os.O_WRONLY | os.O_CREAT)  # open until the process ends
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise
    _HELD.add(folder)
