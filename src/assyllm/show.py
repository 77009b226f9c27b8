"""A study's test accuracies on the screen: ``assyllm show``. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from assyllm.artifacts import ArtifactError
from assyllm.params import PUBLISHED, STUDIES
from assyllm.readme import METHODS, NO_CLIENTS, participation, share
from assyllm.results import read_table


def folder_of(study: str, root: Path = Path()) -> Path:
    """Where the tables of a study lie.

    Raises:
        ArtifactError: no study has that name.
    """
    if study not in STUDIES:
        raise ArtifactError(f"--study {study}: no such study; there are {', '.join(STUDIES)}")
    results = root / "data" / "results"
    return results if study == "default" else results / study


def accuracies(results: Path) -> Table:
    """Test accuracy of every method on every task in the base setting, with its interval; the best of a task bold.

    Who can take part is modelled (``cost.csv``, where there is one); who gave nearly one answer only is marked.

    Args:
        results: a study's folder of tables.

    Raises:
        ArtifactError: no ``accuracy.csv`` there.
    """
    rows = {
        (row["method"], row["task"]): row
        for row in read_table(results / "accuracy.csv")
        if (row["split"], row["main"]) == ("test", "1")
    }
    tasks = _in_order({task for _, task in rows}, PUBLISHED)
    best = {task: max(float(row["mean"]) for (_, of), row in rows.items() if of == task) for task in tasks}
    shares = participation(results) if (results / "cost.csv").is_file() else {}
    runs, examples, worlds = ({row[key] for row in rows.values()} for key in ("runs", "examples", "world"))
    told = f"{' to '.join(sorted(runs, key=int))} runs, {' to '.join(sorted(examples, key=int))} questions a task"
    told = told.replace("1 runs", "1 run") if runs == {"1"} else told
    world = ", ".join("generated tasks" if world == "embedded" else "real tasks" for world in sorted(worlds))
    shown = Table(
        title=f"Test accuracy (95 % interval), {world}: mean of {told}",
        caption="clients: whose memory suffices (modelled); *: nearly always one answer",
        title_justify="left", caption_justify="left", box=None, padding=(0, 2, 0, 0), header_style="",
    )  # fmt: skip
    for column in ("method", "clients", *tasks):
        shown.add_column(column, no_wrap=True)
    for method in _in_order({method for method, _ in rows}, METHODS):
        cells = ["-" if method in NO_CLIENTS else f"{shares[method]:.0f} %" if method in shares else ""]
        for task in tasks:
            row = rows.get((method, task))
            if row is None:
                cells.append("")
                continue
            text = f"{share(row['mean'])} ({share(row['low'])} to {share(row['high'])})"
            text += "*" if row["collapsed"] == "1" else ""
            cells.append(f"[bold]{text}[/bold]" if float(row["mean"]) == best[task] else text)
        shown.add_row(method, *cells)
    return shown


def _in_order(names: set[str], known: Iterable[str]) -> list[str]:
    """Names in the order in which they are known, the others behind them."""
    order = list(known)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def show(study: str, root: Path = Path()) -> None:
    """Print :func:`accuracies` of a study, and where its tables and figures lie."""
    results = folder_of(study, root)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)  # a file has no right edge
    console.print(accuracies(results))
    figures = root / "figures" / ("" if study == "default" else study)
    drawn = len(list(figures.glob("*.png")))
    console.print(f"\nTables: {results}; {drawn} figures: {figures}")
