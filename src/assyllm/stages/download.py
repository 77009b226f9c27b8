"""Stage ``download``: one model of the zoo, fetched from the hub, copied from a folder, or pre-trained here."""

from __future__ import annotations

import os
from pathlib import Path

from assyllm.params import Member, parse_sections

SECTIONS = ("zoo", "world")
CODE = (
    "zoo/cards.py", "zoo/corpus.py", "zoo/families.py", "zoo/load.py", "zoo/member.py", "zoo/muon.py",
    "zoo/pretrain.py", "zoo/tokenizers.py", "tasks/world.py", "artifacts.py", "seeding.py",
)  # fmt: skip
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

    from assyllm.zoo.member import obtain

    torch.set_num_threads(1)
    zoo = p.zoo
    if corpus is not None:
        zoo = zoo.model_copy(update={"pretrain": zoo.pretrain.model_copy(update={"corpus": corpus})})
    members = {**zoo.models, model: found_locally(zoo.models[model])}
    card = obtain(model, zoo.model_copy(update={"models": members}), p.world, zoo_seed, base, out)
    print(card.model_dump_json(indent=2), flush=True)


def found_locally(member: Member) -> Member:
    """The member with its relative ``path`` taken from the folder of local data, if that is set."""
    folder = os.environ.get(DATA_VARIABLE)
    if member.path is None or member.path.is_absolute() or not folder:
        return member
    return member.model_copy(update={"path": Path(folder) / member.path.relative_to("data/external")})
