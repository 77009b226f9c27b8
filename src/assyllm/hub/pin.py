"""Write commits into params.yaml in place: only the revisions change, comments and layout stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from assyllm.artifacts import ArtifactError, write_text


def pin(path: Path, commits: Mapping[str, str]) -> None:
    """Set ``zoo.models.<name>.revision`` of each name to its commit.

    Raises:
        ArtifactError: the file has no such member.
    """
    text = path.read_text(encoding="utf-8")
    for name, commit in commits.items():
        text = _with(text, name, commit, path)
    write_text(path, text)


def _with(text: str, name: str, commit: str, path: Path) -> str:
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in ("zoo", "models", name):
        node = _value(node, key)
        if node is None:
            raise ArtifactError(f"{path}: no zoo.models.{name}")
    revision = _value(node, "revision")
    if revision is not None:
        start, end = revision.start_mark.index, revision.end_mark.index
        gap = " " if text[start - 1] == ":" else ""  # an empty value
        return text[:start] + gap + commit + text[end:]
    anchor = _value(node, "hub_id")
    if anchor is None:
        raise ArtifactError(f"{path}: zoo.models.{name} has no hub_id")
    end = anchor.end_mark.index
    assert isinstance(node, yaml.MappingNode)
    if node.flow_style:
        return f"{text[:end]}, revision: {commit}{text[end:]}"
    line = text.index("\n", end) if "\n" in text[end:] else len(text)
    column = " " * node.start_mark.column
    return f"{text[:line]}\n{column}revision: {commit}{text[line:]}"


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)
