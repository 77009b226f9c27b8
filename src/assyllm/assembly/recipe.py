"""The recipe of an assembled model as YAML: which layers of which models, joined by what, under which licence.

It reads like a merge recipe: ``slices`` in order, each with its source model and layer range.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from assyllm.adapter.base import Adapter
from assyllm.adapter.registry import describe
from assyllm.artifacts import MANIFEST, ArtifactError, read_json, sha256_text, write_text
from assyllm.blocks.block import block_id
from assyllm.blocks.pool import Pool
from assyllm.zoo.encoding import POOLED

FORMAT = 1
SLICE = ("model", "layer_range", "kind", "family", "width", "parameters", "bits", "sha256")
KEYS = (
    "format", "assembled_by", "task", "tokenizer", "max_tokens", "slices", "head", "licence", "licences",
    "compatibility", "params_sha", "fitted_sha256", "fitted_to", "provenance",
)  # fmt: skip
# from free to strict; a licence that is not listed counts as stricter than all of them
LICENCES = (
    "CC0-1.0", "MIT", "BSD-3-Clause", "Apache-2.0", "OpenRAIL-M", "llama2", "llama3", "CC-BY-4.0", "CC-BY-SA-4.0",
    "OPT-175B (non-commercial)", "Llama-1 (non-commercial)", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0",
)  # fmt: skip
_KNOWN = {name.lower(): rank for rank, name in enumerate(LICENCES)}


def strictest(licences: Iterable[str]) -> str:
    """The licence that an assembled model must be under: the strictest of its blocks', ties by name.

    An unknown licence is taken to be stricter than every known one.
    """
    names = sorted(set(licences))
    if not names:
        raise ArtifactError("a model without blocks has no licence")
    return max(names, key=lambda name: (_KNOWN.get(name.lower(), len(LICENCES)), name))


def unknown_licences(licences: Iterable[str]) -> list[str]:
    """Those that are not listed, so that nobody has compared them with the others."""
    return sorted({name for name in licences if name.lower() not in _KNOWN})


@dataclass(frozen=True)
class Recipe:
    """An assembled model on paper; with the pool and the tensors beside it, it can be rebuilt."""

    task: str
    slices: tuple[dict[str, Any], ...]
    head: dict[str, Any]
    licence: str
    licences: dict[str, str]
    max_tokens: int
    compatibility: float
    params_sha: str
    provenance: dict[str, Any] = field(default_factory=dict)
    fitted_sha256: str = ""  # of the file of adapters and head that it goes with, once that is written
    fitted_to: str = ""  # what they were fitted to (:attr:`fits`), told with it

    @property
    def blocks(self) -> tuple[str, ...]:
        """Block ids in order."""
        return tuple(block_id(s["model"], *s["layer_range"]) for s in self.slices)

    @property
    def fits(self) -> str:
        """A hash of all that adapters and head hang on: the slices and their order, what the head reads, the tokens."""
        return sha256_text(json.dumps([self.slices, self.head, self.max_tokens], sort_keys=True))[:16]

    def to_yaml(self) -> str:
        """The recipe's text, stable for equal content."""
        first = self.slices[0]["model"]
        value = {
            "format": FORMAT,
            "assembled_by": "assyllm",
            "task": self.task,
            "tokenizer": first,
            "max_tokens": self.max_tokens,
            "slices": list(self.slices),
            "head": self.head,
            "licence": self.licence,
            "licences": self.licences,
            "compatibility": self.compatibility,
            "params_sha": self.params_sha,
            **({"fitted_sha256": self.fitted_sha256, "fitted_to": self.fitted_to} if self.fitted_sha256 else {}),
            "provenance": self.provenance,
        }
        note = (
            "# An assembled model: blocks of pre-trained models in order (layer_range counts from 0, end excluded).\n"
        )
        return note + yaml.safe_dump(value, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)

    @classmethod
    def from_yaml(cls, text: str, path: Path | str = "recipe.yaml") -> Recipe:
        """Read a recipe.

        Raises:
            ArtifactError: not a recipe of this format; one line with the path.
        """
        try:
            raw = yaml.safe_load(text)
            if raw["format"] != FORMAT:
                raise ArtifactError(f"{path}: format {raw['format']}, {FORMAT} expected")
            if odd := [key for key in raw if key not in KEYS]:
                raise ArtifactError(f"{path}: {odd[0]} is no key of a recipe")
            if not raw["slices"]:
                raise ArtifactError(f"{path}: no slices")
            for number, row in enumerate(raw["slices"], start=1):
                lacking = [key for key in SLICE if key not in row]
                if lacking:
                    raise ArtifactError(f"{path}: slice {number} has no {lacking[0]}")
                described = row.get("adapter")
                if described is not None and not (isinstance(described, dict) and "kind" in described):
                    raise ArtifactError(f"{path}: slice {number}: adapter is a mapping with a kind")
                if described is not None and not isinstance(described["kind"], str):
                    raise ArtifactError(f"{path}: slice {number}: adapter.kind is a name")
                if [type(end) for end in row["layer_range"]] != [int, int]:
                    raise ArtifactError(f"{path}: slice {number}: layer_range is [first, end]")
                if (row["model"], row["layer_range"]) in [
                    (r["model"], r["layer_range"]) for r in raw["slices"][: number - 1]
                ]:
                    raise ArtifactError(f"{path}: slice {number}: {row['model']} {row['layer_range']} stands before")
            if not isinstance(raw["head"], dict) or raw["head"].get("scope") not in ("last_block", "all_blocks"):
                raise ArtifactError(f"{path}: head.scope is last_block or all_blocks")
            dims = raw["head"].get("sketch_dims")
            if dims is not None and (type(dims) is not int or dims < 1):
                raise ArtifactError(f"{path}: head.sketch_dims {dims!r}: a number from 1, or null")
            if not isinstance(raw["task"], str):
                raise ArtifactError(f"{path}: task is a name")
            if type(raw["max_tokens"]) is not int or raw["max_tokens"] < 1:
                raise ArtifactError(f"{path}: max_tokens {raw['max_tokens']!r}: a number from 1 is expected")
            for name in ("licences", "provenance"):
                if not isinstance(raw.get(name, {}), dict):
                    raise ArtifactError(f"{path}: {name} is a mapping")
            found = cls(
                task=raw["task"],
                slices=tuple(raw["slices"]),
                head=raw["head"],
                licence=raw["licence"],
                licences=raw["licences"],
                max_tokens=raw["max_tokens"],
                compatibility=raw["compatibility"],
                params_sha=raw["params_sha"],
                provenance=raw.get("provenance", {}),
                fitted_sha256=raw.get("fitted_sha256", ""),
                fitted_to=raw.get("fitted_to", ""),
            )
            if found.fitted_sha256 and found.fitted_to != found.fits:
                raise ArtifactError(
                    f"{path}: its slices, head or max_tokens are not those that adapters and head were fitted to"
                )
            return found
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: not a recipe ({' '.join(str(error).split())})") from None

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe's file.

        Raises:
            ArtifactError: no such file, or not a recipe.
        """
        try:
            return cls.from_yaml(Path(path).read_text(encoding="utf-8"), path)
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}: {getattr(error, 'strerror', None) or error}") from None

    def write(self, path: Path) -> None:
        """Write the YAML whole or not at all."""
        write_text(path, self.to_yaml())


def recipe_of(
    pool: Pool,
    blocks: Sequence[str],
    adapters: Sequence[Adapter | None],
    task: str,
    max_tokens: int,
    head: dict[str, Any],
    compatibility: float,
    params_sha: str,
    provenance: dict[str, Any],
) -> Recipe:
    """The recipe of a chain.

    Args:
        adapters: one per block; None where it reads the text (the first does) or follows in its own model.
        head: scope, ridge and so on, as they shall stand in the recipe.
    """
    slices = []
    for row, adapter in zip(slices_of(pool, blocks).values(), adapters, strict=True):
        slices.append(row if adapter is None else {**row, "adapter": describe(adapter)})
    licences = {name: pool.models[name].licence for name in sorted({s["model"] for s in slices})}
    return Recipe(
        task=task,
        slices=tuple(slices),
        head={**head, "pooled": list(POOLED)},
        licence=strictest(licences.values()),
        licences=licences,
        max_tokens=max_tokens,
        compatibility=compatibility,
        params_sha=params_sha,
        provenance=provenance,
    )


def slices_of(pool: Pool, blocks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a recipe says of blocks, from the pool alone: block id -> its slice without the adapter.

    Raises:
        ArtifactError: the pool has no such block.
    """
    files = read_json(pool.folder / MANIFEST)["files"]
    found = {}
    for block in blocks:
        info = pool.info(block)
        model = pool.models[info.model]
        row: dict[str, Any] = {"model": info.model, "stands_for": model.stands_for}
        if model.revision:
            row["revision"] = model.revision
        row |= {"layer_range": list(info.layers), "kind": info.kind, "family": info.family}
        row |= {"width": info.width, "parameters": info.parameters, "bits": info.bits}
        if info.group_size:
            row["group_size"] = info.group_size
        found[block] = row | {"sha256": files[info.file]["sha256"]}  # of the block's file in the pool
    return found
