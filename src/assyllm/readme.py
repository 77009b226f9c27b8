"""The parts of README.md and docs/RESULTS.md that are numbers, written from the tables: ``make readme``.

A part stands between ``<!-- NAME: from the tables -->`` and ``<!-- NAME: end -->``; what stands outside is anybody's.
``docs/PARAMETERS.md`` is written from params.yaml likewise. Minutes come from Snakemake's benchmark files where a
study was run here, and are kept in ``data/results/minutes.csv`` for clones that ran none. No torch.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from inspect import getsource
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from assyllm import params as P
from assyllm.artifacts import ArtifactError, write_text
from assyllm.claims.shown import all_claims
from assyllm.claims.table import number
from assyllm.collect.methods import AGAINST
from assyllm.figures import TOPICS, about
from assyllm.params import PUBLISHED
from assyllm.results import SOURCES, read_table, write_table

SHARED = ("recomputation", "swapping")  # full fine-tuning's gradients, so its row where their accuracy is equal
METHODS = {
    "majority": "majority class", "zero_shot": "zero-shot, the member best on dev",
    "zero_shot_llama": "zero-shot, llama, which the baselines fine-tune", "choices_only": "choices only",
    "server_head": "no client: a closed-form head on all layers of all models, fitted to the server's dev questions",
    "one_model_head": "one model and a closed-form head on all its layers",
    "all_models_head": "all five models as they are, one closed-form head on their last states",
    "ft_practical": "FT-practical", "ft_oracle": "FT-oracle",
    "ft_practical_vicuna": "FT-practical on vicuna", "ft_oracle_vicuna": "FT-oracle on vicuna, the best single model",
    "recomputation": "recomputation", "swapping": "swapping", "lora": "LoRA", "qlora": "QLoRA",
    "fedadapter": "FedAdapter", "fwdllm": "FwdLLM", "qlora_recomputation": "QLoRA + recomputation (not in the paper)",
    "lora_all": "LoRA, all clients (not in the paper)", "assyllm_paper": "`assyllm_paper`", "assyllm": "**`assyllm`**",
    "random_blocks": "control: random blocks, read alike",
    "one_model_blocks": "control: one model's blocks, same head", "untrained_blocks": "control: untrained blocks",
}  # fmt: skip
ALL_CLIENTS = ("ft_oracle", "lora_all", *SHARED)
NO_CLIENTS = ("majority", "server_head", "zero_shot", "zero_shot_llama", "choices_only")
VERDICTS = ("reproduced", "reproduced in direction", "not reproduced", "not yet measured")
COLUMNS = ("command", "jobs", "minutes", "max_mb", "source")
Rows = list[dict[str, str]]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rounded(value: str | float | Decimal, digits: int) -> str:
    """A table's decimal text with so many digits, halves away from zero (a mean of two runs often ends with 5)."""
    return str(Decimal(str(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def share(accuracy: str | float) -> str:
    """An accuracy as README writes it: ``.849``."""
    return rounded(accuracy, 3).removeprefix("0")


def accuracy_part(results: Path) -> str:
    """Accuracy of every method on the three tasks, and who can take part."""
    return _accuracy(results, participation(results))


def full_part(results: Path) -> str:
    """The same of the full study, and differences, where tables of it are kept."""
    full = results / "full"
    if not (full / "accuracy.csv").is_file():
        return "Not run."
    return f"{_accuracy(full, participation(results))}\n\n{differences_part(full)}"


def zoos_part(results: Path) -> str:
    """Accuracy over all tasks by zoo, and how far `assyllm` is above, where tables of those studies are kept."""
    paths = [path for study in ("zoos", "worlds") if (path := results / study / "zoos.csv").is_file()]
    if not paths:
        return "Not run."
    every = [r for path in paths for r in read_table(path) if r["task"] == "all"]
    found = {(r["method"], r["zoo"]): r for r in reversed(every)}  # `zoos` goes before `worlds`
    zoos = sorted({zoo for _, zoo in found}, key=lambda zoo: (" " in zoo, zoo))
    lines = []
    for method in (m for m in METHODS if m in {m for m, _ in found} - {*SHARED}):
        cells = []
        for r in (found.get((method, zoo)) for zoo in zoos):
            behind = f" ({points(r['behind'])}: {points(r['low'])} to {points(r['high'])})" if r and r["behind"] else ""
            cells.append(share(float(r["mean"])) + behind if r else "")
        lines.append([METHODS[method], *cells])
    runs = max(int(r["runs"]) for r in found.values())
    text = f"Test accuracy, mean over tasks and {runs} seeds; in brackets the points that `assyllm` is above."
    return text + "\n\n" + table(["method", *(f"zoo {zoo}" for zoo in zoos)], lines)


def _accuracy(results: Path, shares: dict[str, float]) -> str:
    every = read_table(results / "accuracy.csv")
    main = [r for r in every if r["main"] == "1" and r["split"] == "test"]
    means, unseen = (
        {
            (_name(r) if r["main"] != "1" else r["method"], r["task"]): float(r["mean"])
            for r in sorted(every, key=lambda r: r["main"])
            if r["split"] == split and (r["setting"] or r["main"] == "1")
        }
        for split in ("test", "test_unseen")
    )
    best = {task: max(float(r["mean"]) for r in main if r["task"] == task) for task in PUBLISHED}
    equal = [m for m in SHARED if all(means.get((m, t)) == means.get(("ft_oracle", t)) for t in PUBLISHED)]
    lines = []
    for method, name in METHODS.items():
        mine = [means.get((method, task)) for task in PUBLISHED]
        if method in equal or None in mine:
            continue
        if method == "ft_oracle" and equal:
            name = "; ".join([name, *(METHODS[m] for m in equal)]) + " (equal gradients)"
        own = method.removesuffix("_vicuna")  # the shape of llama
        who = "-" if method in NO_CLIENTS else f"{shares[own]:.0f} %" if own in shares else ""
        known = {t: v for t, v in zip(PUBLISHED, mine, strict=True) if v is not None}
        cells = [f"**{share(v)}**" if v == best[t] else share(v) for t, v in known.items()]
        asides = [f" ({share(unseen[method, t])})" if (method, t) in unseen else "" for t in known]
        cells = [cell + aside for cell, aside in zip(cells, asides, strict=True)]
        lines.append([name, who, *cells])
    runs = max(int(r["runs"]) for r in main)
    examples = sorted({int(r["examples"]) for r in main})
    text = f"Test accuracy, mean of {runs} runs, {' to '.join(map(str, examples))} questions a task"
    text += "; in brackets on facts that no client was taught." if unseen else "."
    return text + "\n\n" + table(["method", "clients", *PUBLISHED], lines)


def _name(row: dict[str, str]) -> str:
    """A method on another model than its own (``zero_shot_llama``); "" under any other setting."""
    found = re.fullmatch(r'(?:baselines\.)?model="([\w-]+)"', row["setting"])
    return f"{row['method']}_{found[1]}" if found else ""


def participation(results: Path) -> dict[str, float]:
    """Percent of the clients whose memory suffices, at the shape of Llama-7B or of the pool (modelled)."""
    classes: dict[str, dict[str, float]] = {}
    for row in read_table(results / "cost.csv"):
        if row["model"] == "pool" or row["stands_for"] == "llama-7b":
            classes.setdefault(row["method"], {})[row["memory_gb"]] = float(row["share"]) * int(row["participates"])
    return {m: 100.0 if m in ALL_CLIENTS else 100 * sum(by.values()) for m, by in classes.items()}


def differences_part(results: Path) -> str:
    """Points of the assembling methods above the two reference methods, with paired intervals."""
    found = {(r["method"], r["versus"], r["task"]): r for r in read_table(results / "differences.csv")}
    lines = []
    for method in ("assyllm_paper", "assyllm", "random_blocks"):
        for versus in ("ft_practical", "ft_oracle", "ft_oracle_vicuna", *AGAINST):
            rows = [found.get((method, versus, task)) for task in PUBLISHED]
            cells = [
                "" if r is None
                else f"{points(r['difference'])} ({points(r['low'])} to {points(r['high'])})"
                for r in rows
            ]  # fmt: skip
            if any(cells):
                lines.append([f"`{method}` less {METHODS[versus]}", *cells])
    return "Points, with the 95 % interval of the paired difference.\n\n" + table(["difference", *PUBLISHED], lines)


def points(value: str) -> str:
    """A share as points with one decimal."""
    return rounded(100 * Decimal(value), 1).replace("-0.0", "0.0")


def claims_part(results: Path) -> str:
    """Every claim: the paper's value, ours, source, scale, verdict, why, and the command with its minutes."""
    path = results / "minutes.csv"
    minutes = {r["command"]: r["minutes"] for r in read_table(path)} if path.is_file() else {}
    claims = all_claims(results)
    lines = [
        [r["claim"], f"`{r['method']}`", number(r["paper_value"]), _ours(r), r["unit"], r["source"], r["verdict"],
         r["why"], f"`{r['command']}`", minutes.get(r["command"], "")]
        for r in claims
    ]  # fmt: skip
    counts: dict[str, dict[str, int]] = {}
    for r in claims:
        of = counts.setdefault(r["method"] if r["method"] in ("assyllm_paper", "assyllm") else "the rest", {})
        of[r["verdict"]] = of.get(r["verdict"], 0) + 1
    order = ("assyllm_paper", "assyllm", "the rest")
    judged = []
    for name in (n for n in order if n in counts):
        verdicts = ", ".join(f"{counts[name][v]} {v}" for v in VERDICTS if v in counts[name])
        judged.append(f"{name if name == 'the rest' else f'`{name}`'}: {verdicts}")
    text = "; ".join(judged)
    scales = sorted({r["scale"] for r in claims if r["source"] == "measured"})
    head = ["claim", "of", "paper", "ours", "unit", "source", "verdict", "why", "command", "minutes"]
    details = f"<details><summary>All {len(lines)} rows</summary>\n\n{table(head, lines)}\n\n</details>"
    note = (
        "Minutes: of the jobs that the command makes, one after the other, as Snakemake's benchmarks measured them"
        " (`minutes.csv` says of how many)."
    )
    return f"{text}.\n\nMeasured on: {'; '.join(scales)}. Modelled: true shapes. {note}\n\n{details}"


def _ours(row: dict[str, Any]) -> str:
    value = number(row["our_value"])
    return f"{value} ({number(row['low'])} to {number(row['high'])})" if value and row["low"] != "" else value


def figures_part(results: Path) -> str:
    """Every figure: what of the paper it redraws, what it shows, and where its numbers come from."""
    folder = results.parents[1] / "figures"
    lines = []
    for name in (name for names in TOPICS.values() for name in names):
        files = [f / f"{name}.csv" for f in (folder, *sorted(folder.glob("*/")))]
        found = {file.parent: read_table(file) for file in files if file.is_file()}
        drawn = max(found, key=lambda f: len(found[f]), default=None)  # where it shows most
        rows = found[drawn] if drawn else []
        text = about(name)
        where = re.search(r" \(paper ([^)]*)\)", text)
        sources = {value for row in rows for column, value in row.items() if column.endswith("source")}
        status = ", ".join(s for s in SOURCES if s in sources) or "drawn"
        link = f"[`{name}`]({(drawn / name).relative_to(results.parents[1])}.png)" if drawn else f"`{name}`"
        shows = text.replace(where[0], "") if where else text
        lines.append([link, where[1] if where else "-", shows.rstrip("."), status if drawn else "not drawn yet"])
    return table(["figure", "paper", "shows", "numbers"], lines)


PARTS = {
    "accuracy": accuracy_part, "differences": differences_part, "full": full_part, "zoos": zoos_part,
    "claims": claims_part, "figures": figures_part,
}  # fmt: skip
PAGES = ("README.md", "docs/RESULTS.md")


def filled(page: str, text: str, results: Path) -> str:
    """A page's text with every part written from the tables.

    Raises:
        ArtifactError: a part has no end, or a name that is not known.
    """
    for name in re.findall(r"<!-- (\w+): from the tables -->", text):
        if name not in PARTS:
            raise ArtifactError(f"{page}: no part called {name!r}; known: {', '.join(PARTS)}")
        begin, end = f"<!-- {name}: from the tables -->", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ArtifactError(f"{page}: {begin} has no {end}")
        text = f"{before}{begin}\n{PARTS[name](results)}\n{end}{after}"
    return text


# what stands in params.yaml many times, once for each model or method and task
KINDS: dict[str, type[BaseModel]] = {
    "zoo.models.&lt;name&gt;": P.Member,
    "baselines.&lt;method&gt;.&lt;task&gt;": P.Tuning,
    "the same of lora, lora_all, qlora and qlora_recomputation": P.LoraTuning,
    "the same of fedadapter": P.FedAdapterTuning,
    "the same of fwdllm": P.FwdLLMTuning,
}


def parameters(text: str) -> str:
    """Every line of params.yaml that has a value and a comment, as tables by section, and the keys of :data:`KINDS`."""
    sections: dict[str, list[list[str]]] = {}
    titles: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = re.match(r"( *)([\w.-]+):(?: +(.*?))?(?: *# (.*))?$", line)
        if not found:
            continue
        indent, key, value, comment = len(found[1]), found[2], (found[3] or "").strip(), (found[4] or "").strip()
        above = [(depth, name) for depth, name in above if depth < indent]
        path = [*(name for _, name in above), key]
        above.append((indent, key))
        if indent == 0:
            sections[key], titles[key] = [], comment
        elif path[0] not in ("study", "settings") and (comment or value):
            what, _, paper = comment.partition("paper: ")
            row = [f"`{'.'.join(path[1:])}`", f"`{value}`" if value else "", what.strip("; "), paper]
            sections[path[0]].append([cell.replace("|", "\\|") for cell in row])
    parts = ["# Parameters", "", "Written by `make readme` from `params.yaml`, where every one can be changed.", ""]
    for name, rows in sections.items():
        if rows:
            parts += [f"## {name}", "", titles[name], "", table(["key", "value", "meaning", "paper"], rows), ""]
    for title, kind in KINDS.items():
        parts += [f"## {title}", "", table(["key", "default", "meaning"], _fields(kind)), ""]
    return "\n".join(parts).replace("\n\n\n", "\n\n")


def _fields(kind: type[BaseModel]) -> list[list[str]]:
    """Name, default and the words behind each of a class's own fields."""
    rows = []
    for field, words in pairwise(ast.parse(getsource(kind)).body[0].body):  # type: ignore[attr-defined]
        if isinstance(field, ast.AnnAssign) and isinstance(words, ast.Expr):
            known = kind.model_fields[field.target.id]  # type: ignore[union-attr]
            default = "" if known.is_required() else f"`{json.dumps(known.get_default(call_default_factory=True))}`"
            rows.append([f"`{field.target.id}`", default, words.value.value.replace("|", "\\|")])  # type: ignore
    return rows


def minutes_rows(root: Path) -> list[dict[str, Any]]:
    """What each claim's command takes in a bare clone: jobs, minutes one after the other, memory.

    From Snakemake's benchmark files; where not every job of a command was made here, the row of ``minutes.csv`` stays.
    """
    results = root / "data" / "results"
    path = results / "minutes.csv"
    kept = {r["command"]: r for r in read_table(path)} if path.is_file() else {}
    rows: list[dict[str, Any]] = []
    for command in dict.fromkeys(r["command"] for r in all_claims(results)):
        read = [_benchmark(file) for file in _jobs(command, root)]
        if read:
            seconds, memory = (sum(r["s"] for r in read), max(r["max_rss"] for r in read))
            rows.append(
                {"command": command, "jobs": len(read), "minutes": f"{seconds / 60:.1f}", "max_mb": round(memory),
                 "source": "measured"}
            )  # fmt: skip
        elif command in kept and "assyllm estimate" not in command:
            rows.append(kept[command])
    return rows


def _benchmark(path: Path) -> dict[str, float]:
    last = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t"))[-1]
    known = re.compile(r"[\d.]+$")  # a job that was over at once has "NA" or "-"
    return {key: float(last[key]) if known.match(last[key]) else 0.0 for key in ("s", "max_rss")}


def _jobs(command: str, root: Path) -> list[Path]:
    """Benchmark files of the jobs that a command makes in an empty folder (a dry run tells); none if one is missing."""
    if not command.startswith("snakemake ") or not (root / "logs").is_dir():
        return []
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    told = subprocess.run(
        ["bash", "-c", f"{command} --dry-run --forceall --nolock"], cwd=root, env={**os.environ, "PATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    if told.returncode:
        raise ArtifactError(f"{command}: {(told.stderr or told.stdout).strip().splitlines()[-1]}")
    files = [root / name for name in re.findall(r"^ +benchmark: (.+)$", told.stdout + told.stderr, flags=re.M)]
    return files if all(file.is_file() for file in files) else []


def write(root: Path) -> list[Path]:
    """Write minutes (where a study was run), the pages' parts and docs/PARAMETERS.md; the files that changed."""
    results = root / "data" / "results"
    rows = minutes_rows(root)
    if rows:
        write_table(results / "minutes.csv", rows, COLUMNS)
    made = {root / page: filled(page, (root / page).read_text(encoding="utf-8"), results) for page in PAGES}
    made[root / "docs" / "PARAMETERS.md"] = parameters((root / "params.yaml").read_text(encoding="utf-8"))
    changed = [path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        write_text(path, made[path])
    return changed


if __name__ == "__main__":
    try:
        for file in write(Path.cwd()):
            print(f"wrote {file}")
    except ArtifactError as error:
        sys.exit(f"assyllm: {error}")
