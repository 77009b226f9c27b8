"""A hub model as a member of the zoo: its cached files linked or converted into one checked folder, with its card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from assyllm.artifacts import ArtifactError, output_folder
from assyllm.hub.ask import Patience, pinned
from assyllm.hub.convert import convert
from assyllm.hub.fetch import fetch
from assyllm.hub.space import disk_of, require
from assyllm.params import Member
from assyllm.zoo.architecture import ARCHITECTURES
from assyllm.zoo.cards import ModelCard, write_card
from assyllm.zoo.load import load_config, load_tokenizer, weight_files, weights_sha256


def obtain(name: str, member: Member, out: Path, patience: Patience | None = None) -> ModelCard:
    """Bring a hub model and write its folder, whole or not at all; returns its card.

    Raises:
        ArtifactError: one line; not pinned, not to be had, not what params say, or too large for the disk.
    """
    with output_folder(out) as folder:
        card = _bring(name, member, folder, patience)
        write_card(folder, card)
    return card


def _bring(name: str, member: Member, folder: Path, patience: Patience | None) -> ModelCard:
    assert member.hub_id is not None
    commit = pinned(member.revision, f"zoo.models.{name}.revision")
    snapshot, _ = fetch(member.hub_id, commit, patience)
    files = sorted(path for path in snapshot.iterdir() if path.is_file())
    pickled = [f.name for f in files if f.suffix == ".bin"]
    kept = [f for f in files if f.suffix != ".bin" and f.name != "pytorch_model.bin.index.json"]
    here = disk_of(snapshot) == disk_of(folder)
    new = sum((snapshot / n).stat().st_size for n in pickled) + (0 if here else sum(f.stat().st_size for f in kept))
    require(new, folder, f"zoo.models.{name}: its folder")
    for file in kept:
        _place(file, folder / file.name)
    vocabulary = not (folder / "tokenizer.json").is_file()
    if pickled or vocabulary:
        convert(snapshot, folder, pickled, vocabulary)
    parameters = _checked(name, member.family, folder)
    return ModelCard(
        name=name,
        family=member.family,
        stands_for=member.stands_for,
        source="hub",
        origin=member.hub_id,
        revision=commit,
        licence=member.licence or "unknown",
        parameters=parameters,
        weights_sha256=weights_sha256(folder),
    )


def _place(file: Path, target: Path) -> None:
    """Cached weights get a second name, so that they lie on the disk once; a copy on another disk.

    The rest is copied: a tokenizer that is made anew writes into these files, and must not write into the cache.
    """
    try:
        if file.suffix == ".safetensors":
            os.link(file.resolve(), target)
            return
    except OSError:
        pass
    shutil.copyfile(file, target)


def _checked(name: str, family: str, folder: Path) -> int:
    """Number of weights of a folder that holds a whole model of ``family``; no weight is read for it."""
    import transformers

    config = load_config(folder)
    if config.model_type != family:
        raise ArtifactError(
            f"zoo.models.{name}.family: {family!r}, but {folder / 'config.json'} says {config.model_type!r}"
        )
    load_tokenizer(folder)
    weight_files(folder)
    transformers.utils.logging.disable_progress_bar()
    model, found = ARCHITECTURES[family].model_class.from_pretrained(
        folder, config=config, device_map="meta", use_safetensors=True, local_files_only=True, trust_remote_code=False,
        output_loading_info=True,
    )  # fmt: skip
    lacking = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if lacking:
        raise ArtifactError(f"zoo.models.{name}: no weights for {lacking[0]} ({len(lacking)} lacking in all)")
    return int(model.num_parameters())
