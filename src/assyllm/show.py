"""A study's test accuracies on the screen: ``assyllm show``. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from assyllm.artifacts import ArtifactError
from assyllm.collect.hits import Rows, but
from assyllm.params import PUBLISHED, STUDIES, setting_values
from assyllm.readme import METHODS, NO_CLIENTS, participation, share
from assyllm.results import read_table


def accuracies(main: Rows, shares: dict[str, float]) -> Table:
    """Test accuracy of every method on every task with its interval, the best of a task bold, ``*`` at a collapsed one.

    Args:
        main: rows of ``accuracy.csv``, one a method and task.
        shares: percent of the clients that can take part, by method; the column is left out where there are none.
    """
    rows = {(row["method"], row["task"]): row for row in main}
    tasks = _in_order({task for _, task in rows}, PUBLISHED)
    best = {task: max(float(row["mean"]) for row in main if row["task"] == task) for task in tasks}
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="")
    for column in ("method", *(["clients"] if shares else []), *tasks):
        table.add_column(column, no_wrap=True)
    for method in _in_order({method for method, _ in rows}, METHODS):
        who = "-" if method in NO_CLIENTS else f"{shares[method]:.0f} %" if method in shares else ""
        cells = [_cell(row, best[task]) if (row := rows.get((method, task))) else "" for task in tasks]
        table.add_row(method, *([who] if shares else []), *cells)
    return table


def _cell(row: dict[str, str], best: float) -> str:
    text = f"{share(row['mean'])} {share(row['low'])}-{share(row['high'])}" + "*" * (row["collapsed"] == "1")
    return f"[bold]{text}[/bold]" if float(row["mean"]) == best else text


def _in_order(names: set[str], known: Iterable[str]) -> list[str]:
    """Names in the order in which they are known, the others behind them."""
    order = list(known)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _by_world(test: Rows) -> dict[str, Rows]:
    """The base setting's rows, and the same ones of every other generated world that a study asks about."""
    main = {(row["method"], row["setting"]) for row in test if row["main"] == "1"}
    found: dict[str, Rows] = {}
    for row in test:
        if (row["method"], but(row["setting"], "world.seed")) in main:
            seed = setting_values(row["setting"]).get("world.seed")
            found.setdefault("" if seed is None else f"world.seed={seed}", []).append(row)
    return found


def show(study: str, root: Path = Path()) -> None:
    """Print :func:`accuracies` of a study in its base setting, of each of its worlds, and where tables and figures lie.

    Raises:
        ArtifactError: no study has that name, or its tables are not there.
    """
    if study not in STUDIES:
        raise ArtifactError(f"--study {study}: no such study; there are {', '.join(STUDIES)}")
    default = root / "data" / "results"
    results, figures = default, root / "figures"
    if study != "default":
        results, figures = results / study, figures / study
    test = [row for row in read_table(results / "accuracy.csv") if row["split"] == "test"]
    worlds = _by_world(test)
    main = [row for rows in worlds.values() for row in rows]
    costed = next((folder for folder in (results, default) if (folder / "cost.csv").is_file()), None)
    shares = participation(costed) if costed else {}
    tables = {world: accuracies(rows, shares) for world, rows in sorted(worlds.items())}
    runs, examples = (" to ".join(sorted({row[key] for row in main}, key=int)) for key in ("runs", "examples"))
    kinds = " and ".join(sorted({"generated" if row["world"] == "embedded" else "real" for row in main}))
    title = f"{kinds} tasks: {runs} run{'' if runs == '1' else 's'}, {examples} questions"
    drawn = len(list(figures.glob("*.png")))
    below = [
        *(["clients: whose memory suffices (modelled)"] if shares else []),
        *(["*: nearly always one answer"] if any(row["collapsed"] == "1" for row in main) else []),
        "",
        f"Tables: {results}" + (f"; figures ({drawn}): {figures}" if drawn else ""),
    ]
    console = Console(highlight=False)
    wide = console.options.update(width=1000)
    console.width = max([console.width, *(console.measure(table, options=wide).maximum for table in tables.values())])
    console.print(f"Test accuracy and its 95 % interval, {title}", soft_wrap=True)
    for world, table in tables.items():
        if world:
            console.print(f"\n{world}")
        console.print(table)
    for line in below:
        console.print(line, soft_wrap=True)
