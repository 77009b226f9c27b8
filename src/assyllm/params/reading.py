"""From the file to typed sections and back to a stage's JSON; what is wrong is one line that names the key."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from assyllm.artifacts import ArtifactError, read_text, sha256_text
from assyllm.params.section import ParamsError, validate
from assyllm.params.whole import SECTIONS, Params


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice (plain YAML keeps the last one silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ParamsError(f"{key}: not a key (line {key_node.start_mark.line + 1})")
            if key in seen:
                raise ParamsError(f"{key}: given twice (line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; a missing, broken or doubled key is one :class:`ParamsError` line."""
    try:
        text = read_text(path)
    except ArtifactError as error:
        raise ParamsError(str(error)) from None
    try:
        value = yaml.load(text, Loader=_StrictLoader)
        json.dumps(value, default=_no_value)
    # YAML's own; the 13th month; a list among a set's entries; a thousand brackets
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ParamsError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise ParamsError(f"{path}: a mapping of sections is expected")
    return value


def _no_value(value: Any) -> Any:
    raise ValueError(f"{value} is read as a {type(value).__name__}, which no parameter is; put it in quotes")


def load(path: Path) -> Params:
    """Read and check a whole params.yaml, the overrides of every named setting included.

    Raises:
        ParamsError: one line naming the key at fault.
    """
    return checked(read_yaml(path))


def checked(raw: dict[str, Any]) -> Params:
    """What :func:`load` makes of a file's mapping."""
    params = validate(Params, raw)
    for setting in params.settings:
        try:
            with_setting(raw, setting)
        except ParamsError as error:
            raise ParamsError(f"settings.{setting}: {error}") from None
    return params


def with_setting(raw: dict[str, Any], setting: str) -> Params:
    """The params with one named setting's overrides (``{"partition.alpha": 0.1}``) applied."""
    merged = json.loads(json.dumps(raw))
    for dotted, value in raw["settings"][setting].items():
        *parents, leaf = dotted.split(".")
        node = merged
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
            if node is None:
                raise ParamsError(f"{dotted}: no such key")
        if not isinstance(node, dict):
            raise ParamsError(f"{dotted}: no such key")
        node[leaf] = value  # a key with a default need not stand in the file; an unknown one is refused below
    return validate(Params, merged)


def setting_text(raw: dict[str, Any], setting: str, zoo_seed: int = 0) -> str:
    """A setting as canonical ``key=value`` text, sorted; ``""`` for the base setting on zoo 0."""
    pairs = dict(raw["settings"][setting])
    if zoo_seed:
        pairs["zoo.seed"] = zoo_seed
    return values_text(pairs)


def values_text(values: Mapping[str, Any]) -> str:
    """Keys and values as a setting's canonical text, sorted by key."""
    return " ".join(f"{key}={json.dumps(value, sort_keys=True)}" for key, value in sorted(values.items()))


def setting_values(text: str) -> dict[str, Any]:
    """Keys and values of a setting's text (:func:`setting_text`)."""
    found, decoder = {}, json.JSONDecoder()
    while text:
        key, _, rest = text.partition("=")
        found[key], end = decoder.raw_decode(rest)
        text = rest[end + 1 :]
    return found


def is_base(text: str) -> bool:
    """Whether a setting's text is the base one, on whichever zoo."""
    return set(setting_values(text)) <= {"zoo.seed"}


def sections_json(params: Params, names: Iterable[str]) -> str:
    """The named sections as canonical JSON: what a stage gets, and what its re-runs depend on."""
    return json.dumps({name: getattr(params, name).model_dump(mode="json") for name in names}, sort_keys=True)


def parse_sections(text: str, names: Iterable[str]) -> Any:
    """Parse a stage's ``--params``: a namespace with exactly the named sections, typed.

    Raises:
        ParamsError: not JSON, a section missing or unexpected, or a value out of range.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ParamsError(f"--params: not JSON ({error})") from None
    names = tuple(names)
    if not isinstance(raw, dict) or sorted(raw) != sorted(names):
        given = sorted(raw) if isinstance(raw, dict) else raw
        raise ParamsError(f"--params: sections {given} given, {sorted(names)} expected")
    return SimpleNamespace(**{name: validate(SECTIONS[name], raw[name], prefix=name) for name in names})


def params_sha(text: str) -> str:
    """Twelve hex digits that identify a stage's params JSON."""
    return sha256_text(text)[:12]


def schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Params.model_json_schema()}
