"""Stage ``figure``: one figure from the result tables."""

from __future__ import annotations

import importlib
from pathlib import Path

from assyllm.artifacts import ArtifactError
from assyllm.params import parse_sections

SECTIONS = ("figures",)


def run(params: str, code_sha: str, name: str, results: Path, out: Path) -> None:
    """Draw ``name`` from the tables in ``results`` into ``out`` as PDF, PNG and CSV.

    Raises:
        ArtifactError: there is no such figure, or a table is missing.
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
    df = module.data(Tables(results))
    ours = df[df["source"] != "paper"] if "source" in df else df
    figure = module.draw(df, look) if len(ours) else style.nothing(look)
    style.save(figure, df, Path(out), name)
