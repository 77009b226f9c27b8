"""Stage ``figure``: one figure from the result tables."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path

from assyllm.artifacts import ArtifactError
from assyllm.params import parse_sections

SECTIONS = ("figures",)
CODE = ("cost/devices.csv",)  # devices' labels (study.code_sha)


def run(params: str, code_sha: str, name: str, results: Path, out: Path) -> None:
    """Draw ``name`` from the tables in ``results`` into ``out`` as PDF, PNG and CSV.

    Raises:
        ArtifactError: there is no such figure, or a table is missing or lacks a column.
    """
    look = parse_sections(params, SECTIONS).figures
    try:
        module = importlib.import_module(f"assyllm.figures.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"assyllm.figures.{name}":
            raise
        raise ArtifactError(f"figures.names: there is no figure called {name!r}") from None
    from assyllm.figures import style
    from assyllm.figures.tables import Tables

    style.apply(look)
    try:
        df = module.data(Tables(results))
        ours = df[df["source"] != "paper"] if "source" in df else df
        figure = module.draw(df, look) if len(ours) else style.nothing(look)
    except (KeyError, AttributeError) as error:  # no such column, as pandas looks it up or as a row's attribute
        if not module.READS:
            raise
        frames = traceback.extract_tb(error.__traceback__)
        place = [frame for frame in frames if Path(frame.filename).parent.name == "figures"][-1]
        told = f"{error} in {Path(place.filename).name}, line {place.lineno}"
        tables = ", ".join(f"{table}.csv" for table in module.READS)
        raise ArtifactError(f"{results}: {tables}: not the columns that figure {name} reads ({told})") from error
    style.save(figure, df, Path(out), name)
