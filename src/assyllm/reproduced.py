"""Does a study made again give the tables that it gave before? ``assyllm reproduced OLD NEW``. No torch.

Where every run had the same weights (``runs.csv``, column ``weights_sha``), the tables of results must be equal cell by
cell; wall times and hashes of code and parameters are not results. Another type of machine trains another zoo in the
low digits: then every method's accuracy on every task must lie within what the two studies' intervals allow,
which know of seeds and questions, and :data:`ROOM` for the zoo; and only what follows from shapes must be equal.

The study made again may be a part of the old one (``snakemake check``): then its runs' own rows are compared, and not
what is computed over all runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assyllm.artifacts import ArtifactError
from assyllm.results import read_table

SHAPES = ("cost", "curves", "model_sizes")  # of true shapes only: the same whatever the weights
EQUAL = (
    "metrics", "accuracy", "rounds", "differences", "zoos", "ablations", "non_iid", "models", "resources", "quantizer",
    "tradeoff", "compatibility_heatmaps", "feature_differences", "claims", *SHAPES,
)  # fmt: skip
OF_RUNS = ("metrics", "models", "cost", "curves")  # whose every row belongs to one run or one method
ROOM = 0.05  # between two zoos of one recipe, pre-trained on two types of machine (EXPERIMENTS.md)
KEY = ("task", "method", "setting", "split")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison found: how it was made, how many cells or intervals it looked at, and what differs."""

    how: str
    compared: int
    differences: list[str]

    def __str__(self) -> str:
        head = f"{self.how}: {self.compared} compared, {len(self.differences)} differ"
        return "\n".join([head, *self.differences[:20]])


def compare(old: Path, new: Path) -> Verdict:
    """Hold the tables in ``new`` against those in ``old``.

    Raises:
        ArtifactError: a table or a column of it is missing, or ``new`` holds a run that ``old`` does not.
    """
    runs = [_rows(Path(folder) / "runs.csv", "run_id", "method", "weights_sha") for folder in (old, new)]
    before, after = ({row["run_id"]: row["weights_sha"] for row in rows} for rows in runs)
    if not after or not set(after) <= set(before):
        unknown = sorted(set(after) - set(before))
        raise ArtifactError(f"{new}: not runs of {old}: {', '.join(unknown[:5]) or 'there are none'}")
    part = len(after) < len(before)
    kept = {row["run_id"]: row["method"] for row in runs[1]} if part else None
    about = f"{len(after)} of {len(before)} runs, " if part else ""
    if all(before[run] == sha for run, sha in after.items()):
        tables = [table for table in EQUAL if not part or table in OF_RUNS]
        return Verdict(f"{about}the same weights, equal cells", *_cells(Path(old), Path(new), tables, kept))
    shared, apart = _intervals(Path(old), Path(new), part)
    cells, unlike = _cells(Path(old), Path(new), [t for t in SHAPES if not part or t in OF_RUNS], kept)
    how = f"{about}other weights, {shared} intervals at most {ROOM} apart, {cells} equal cells of shapes"
    return Verdict(how, shared + cells, apart + unlike)


def _rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """A table's rows, with a clear word where a column is missing."""
    rows = read_table(path)
    for name in columns:
        if rows and name not in rows[0]:
            raise ArtifactError(f"{path}: no column {name!r}")
    return rows


def _cells(old: Path, new: Path, tables: Sequence[str], kept: dict[str, str] | None) -> tuple[int, list[str]]:
    """How many cells of some tables were compared, and which differ.

    Args:
        kept: of a part of the runs, those and their methods: only rows of theirs are compared.
    """
    compared, differences = 0, []
    for table in tables:
        before, after = (read_table(folder / f"{table}.csv") for folder in (old, new))
        if kept is not None and before:
            own, names = ("run_id", set(kept)) if "run_id" in before[0] else ("method", set(kept.values()))
            before, after = ([row for row in rows if row[own] in names] for rows in (before, after))
        if len(before) != len(after):
            differences.append(f"{table}: {len(before)} rows before, {len(after)} now")
        for place, (row, other) in enumerate(zip(before, after, strict=False), start=2):
            compared += len(row)
            changed = [name for name in row if row[name] != other.get(name)]
            if changed:
                name = changed[0]
                what = " ".join(row[key] for key in (*KEY, "run_id", "metric") if row.get(key))
                differences.append(f"{table}.csv line {place} ({what}): {name} {row[name]}, now {other.get(name)}")
    return compared, differences


def _number(row: dict[str, str], name: str) -> float:
    try:
        return float(row[name])
    except ValueError:
        raise ArtifactError(f"accuracy.csv: {name} of {row['method']} is {row[name]!r}, no number") from None


def _intervals(old: Path, new: Path, part: bool) -> tuple[int, list[str]]:
    """How many accuracies' intervals were compared, and which lie apart; a part lacks some of them."""
    columns = (*KEY, "mean", "low", "high")
    before, after = (
        {tuple(row[key] for key in KEY): row for row in _rows(folder / "accuracy.csv", *columns)}
        for folder in (old, new)
    )
    alone = set(after) - set(before) if part else set(before) ^ set(after)
    differences = [f"accuracy.csv: {' '.join(key)} is in one of them only" for key in sorted(alone)]
    shared = sorted(set(before) & set(after))
    for key in shared:
        a, b = before[key], after[key]
        if not (_number(a, "low") - _number(b, "high") <= ROOM and _number(b, "low") - _number(a, "high") <= ROOM):
            differences.append(
                f"accuracy.csv: {' '.join(key)} {a['mean']} ({a['low']} to {a['high']}), "
                f"now {b['mean']} ({b['low']} to {b['high']})"
            )
    return len(shared), differences
