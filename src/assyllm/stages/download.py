"""Stage ``download``: one model of the zoo: fetched, copied from a folder, pre-trained here, or random weights."""

from __future__ import annotations

import os
from pathlib import Path

from assyllm.artifacts import ArtifactError
from assyllm.params import Member, parse_sections

SECTIONS = ("zoo", "world")
DATA_VARIABLE = "ASSYLLM_DATA"


def run(
    params: str, code_sha: str, model: str, zoo_seed: int, base: Path | None, corpus: Path | None, out: Path
) -> None:
    """Write the folder of ``model``: config, safetensors, tokenizer, card.

    Args:
        base: folder of the member that it is continued from, if any.
        corpus: plain text that stands for ``zoo.pretrain.corpus: passages``.
    """
    p = parse_sections(params, SECTIONS)
    import torch

    from assyllm.cost.shapes import config_of
    from assyllm.hub import member as hub_member
    from assyllm.zoo.member import obtain

    torch.set_num_threads(1)
    zoo = p.zoo
    if model not in zoo.models:
        raise ArtifactError(f"zoo.models: no {model!r}; known: {', '.join(zoo.models)}")
    if zoo.source_of(model) == "hub":
        print(hub_member.obtain(model, zoo.models[model], out).model_dump_json(indent=2), flush=True)
        return
    corpus = corpus or in_local_data(zoo.pretrain.corpus)
    if corpus is not None:
        zoo = zoo.model_copy(update={"pretrain": zoo.pretrain.model_copy(update={"corpus": corpus})})
    members = {**zoo.models, model: found_locally(zoo.models[model])}
    hub = config_of(zoo.models[model].stands_for) if zoo.source_of(model) == "random" else None
    card = obtain(model, zoo.model_copy(update={"models": members}), p.world, zoo_seed, base, out, hub)
    print(card.model_dump_json(indent=2), flush=True)


def found_locally(member: Member) -> Member:
    """The member with its relative ``path`` taken from the folder of local data, if that is set."""
    return member.model_copy(update={"path": in_local_data(member.path)})


def in_local_data(path: Path | None) -> Path | None:
    """A path under ``data/external``, in the folder of local data if that is set."""
    folder = os.environ.get(DATA_VARIABLE)
    if path is None or path.is_absolute() or not folder or not path.is_relative_to("data/external"):
        return path
    return Path(folder).absolute() / path.relative_to("data/external")
