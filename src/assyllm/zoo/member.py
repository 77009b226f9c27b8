"""A member of the zoo, pre-trained here or from a folder, into one folder: config, safetensors, tokenizer, card."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from assyllm import seeding
from assyllm.artifacts import ArtifactError, output_folder
from assyllm.tasks.world import CORPUS_WORDINGS, FORMS, Fact, World
from assyllm.zoo import tokenizers
from assyllm.zoo.cards import ModelCard, write_card
from assyllm.zoo.corpus import TokenRow, encode_documents, encode_rows, read_documents
from assyllm.zoo.encoding import largest_id
from assyllm.zoo.families import family
from assyllm.zoo.load import (
    load_config,
    load_model,
    load_tokenizer,
    no_bars_in_logs,
    weights_sha256,
)
from assyllm.zoo.pretrain import Recipe, Special, held_out_loss, pretrain
from assyllm.zoo.random import write_random

KNOWN = 0.85  # accuracy on read facts below which a form is an exception on the card
HELD_OUT_ROWS = 500
PROBED_FACTS = 400  # read facts asked for each form


def obtain(
    name: str, zoo: Any, world: Any, zoo_seed: int, base: Path | None, out: Path, hub: dict[str, Any] | None = None
) -> ModelCard:
    """Make or copy a member and write its folder, whole or not at all (``hub.member`` brings those of the hub).

    Args:
        name: key of ``zoo.models``.
        zoo: section ``zoo``.
        world: section ``world``; read only by members that know facets of it.
        zoo_seed: seed of everything drawn for a member that is pre-trained here.
        base: folder of the member that this one continues, or None.
        out: the folder to write.
        hub: the hub config of the model that a random member stands for.

    Raises:
        ArtifactError: one line; a file is missing or damaged, or the sources contradict the parameters.
    """
    source = zoo.source_of(name)
    with output_folder(out) as folder:
        if source == "embedded":
            card = _pretrained(name, zoo, world, zoo_seed, base, folder)
        elif source == "random":
            card = _random(name, zoo, world, zoo_seed, hub or {}, folder)
        else:
            card = _brought(name, zoo, folder)
        write_card(folder, card)
    return card


def _brought(name: str, zoo: Any, folder: Path) -> ModelCard:
    """Copy a local folder, and check that it loads as what it is said to be."""
    member = zoo.models[name]
    origin = Path(member.path)
    if not origin.is_dir():
        raise ArtifactError(f"zoo.models.{name}.path: {origin}: no such folder")
    config = load_config(origin)
    if config.model_type != member.family:
        raise ArtifactError(
            f"zoo.models.{name}.family: {member.family!r}, but {origin / 'config.json'} says {config.model_type!r}"
        )
    tokenizer, model = load_tokenizer(origin), load_model(origin)
    rows = model.get_input_embeddings().num_embeddings
    if largest_id(tokenizer) >= rows:
        raise ArtifactError(f"{origin}: its tokenizer gives token {largest_id(tokenizer)}, the model has {rows}")
    for weight, tensor in model.named_parameters():
        if not bool(tensor.isfinite().all()):
            raise ArtifactError(f"{origin}: {weight} is not finite")
    for file in sorted(origin.iterdir()):
        if file.is_file() and file.suffix in (".json", ".safetensors", ".model", ".txt"):
            shutil.copyfile(file, folder / file.name)
    return ModelCard(
        name=name,
        family=member.family,
        stands_for=member.stands_for,
        source="local",
        origin=str(member.path),
        licence=member.licence or "unknown",
        parameters=model.num_parameters(),
        weights_sha256=weights_sha256(folder),
    )


def _random(name: str, zoo: Any, world_params: Any, zoo_seed: int, hub: dict[str, Any], folder: Path) -> ModelCard:
    """Random weights at the shape of ``hub``; a tokenizer of the family's kind trained here, as small as it gets."""
    member = zoo.models[name]
    if hub.get("model_type") != member.family:
        raise ArtifactError(
            f"zoo.models.{name}.family: {member.family!r}, but {member.stands_for} is a {hub.get('model_type')}"
        )
    world = World.build(world_params) if member.facets else None
    texts, _ = _corpus(member, zoo.pretrain, world, (zoo_seed, name))
    _tokenizer(name, zoo, texts, world).save_pretrained(folder)
    parameters = write_random(hub, folder, zoo_seed, name)
    return ModelCard(
        name=name,
        family=member.family,
        stands_for=member.stands_for,
        source="random",
        origin=f"random weights in the shape of {member.stands_for}",
        licence="Apache-2.0",
        parameters=parameters,
        weights_sha256=weights_sha256(folder),
        seed=zoo_seed,
    )


def _tokenizer(name: str, zoo: Any, texts: Sequence[str], world: World | None) -> Any:
    """A member's own tokenizer, trained on its texts; the world's words stay whole."""
    member, words = zoo.models[name], world.words() if world else ()
    kind = family(member.family)
    least = len(kind.specials) + len(set(words))
    if member.vocabulary <= least:
        raise ArtifactError(
            f"zoo.models.{name}.vocabulary: {member.vocabulary} is too small: special tokens and the world's words "
            f"(world.entities, world.facets) take {least}"
        )
    return tokenizers.train(kind, texts, member.vocabulary, zoo.pretrain.max_tokens, words)


def _pretrained(name: str, zoo: Any, world_params: Any, zoo_seed: int, base: Path | None, folder: Path) -> ModelCard:
    member, settings = zoo.models[name], zoo.pretrain
    names = (zoo_seed, name)
    kind = family(member.family)
    world = World.build(world_params) if member.facets else None
    model: Any
    texts, rows_of = _corpus(member, settings, world, names)
    if base is None:
        tokenizer = _tokenizer(name, zoo, texts, world)
        model = kind.build(kind.config(member, tokenizer, settings.max_tokens), seeding.seed_for("init", *names))
    else:
        tokenizer, model = load_tokenizer(base), load_model(base)
        if model.config.model_type != member.family:
            raise ArtifactError(
                f"zoo.models.{name}.continued_from: {base} is a {model.config.model_type}, not a {member.family}"
            )
    positions = model.config.max_position_embeddings - kind.extra_positions
    rows = rows_of(tokenizer, min(settings.max_tokens, positions))
    recipe = Recipe(
        causal=kind.architecture.causal,
        steps=member.steps,
        batch=settings.batch,
        matrix_learning_rate=settings.matrix_learning_rate,
        other_learning_rate=member.other_learning_rate or settings.other_learning_rate,
        answer_weight=settings.answer_weight,
        device=settings.device,
        bf16=settings.bf16,
    )
    special = Special.of(tokenizer)
    held = min(HELD_OUT_ROWS, max(1, len(rows) // 20))
    with _progress(name, recipe.steps) as report:
        pretrain(model, rows[held:], special, recipe, *names, report=report)
    lost = held_out_loss(model, rows[:held], special, replace(recipe, bf16=False), *names)
    no_bars_in_logs()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    known = known_facts(model, tokenizer, world, member.facets, *names) if world else {}
    return ModelCard(
        name=name,
        family=member.family,
        stands_for=member.stands_for,
        source="embedded",
        origin="generated world" if world else str(settings.corpus),
        licence=member.licence or ("Apache-2.0" if world else "as its corpus"),
        parameters=model.num_parameters(),
        weights_sha256=weights_sha256(folder),
        seed=zoo_seed,
        continued_from=member.continued_from,
        steps=member.steps,
        held_out_loss=round(lost, 4),
        knowledge=[world.facets[i].name for i in member.facets] if world else [],
        known_facts=known,
        exceptions=[form for form, accuracy in known.items() if accuracy < KNOWN],
    )


def _corpus(
    member: Any, settings: Any, world: World | None, names: tuple[int, str]
) -> tuple[list[str], Callable[[Any, int], list[TokenRow]]]:
    """The texts that train the tokenizer; what turns it and a longest row into the rows that train the model."""
    if world is not None:
        rows = world.corpus(member.facets, settings.rows, settings.passages, *names)
        return [row.text for row in rows], lambda tokenizer, longest: encode_rows(tokenizer, rows, longest)
    if settings.corpus is None:
        raise ArtifactError("zoo.pretrain.corpus: needed where a member is pre-trained and knows no facets")
    documents = read_documents(settings.corpus)
    return documents, lambda tokenizer, longest: encode_documents(tokenizer, documents, longest)


@torch.no_grad()
def known_facts(model: Any, tokenizer: Any, world: World, facets: Sequence[int], *names: str | int) -> dict[str, float]:
    """Accuracy of the likeliest answer among a fact's options, for facts of ``facets``, by form.

    Zero-shot, with the model's own objective: the next token, or the token in the mask's place.
    """
    draw = seeding.rng("known_facts", *names)
    out = {}
    for form in FORMS:
        facts = world.facts(form, facets)
        facts = [facts[i] for i in draw.permutation(len(facts))[:PROBED_FACTS]]
        wordings = draw.integers(CORPUS_WORDINGS, size=len(facts))
        hits = _answered(model, tokenizer, facts, [int(w) for w in wordings])
        out[form] = round(sum(hits) / len(hits), 4)
    return out


def _answered(model: Any, tokenizer: Any, facts: Sequence[Fact], wordings: Sequence[int]) -> list[bool]:
    masked = tokenizer.mask_token_id is not None
    texts = [f.ask(w) + (f" {tokenizer.mask_token}" if masked else "") for f, w in zip(facts, wordings, strict=True)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if masked:
        at = (batch["input_ids"] == tokenizer.mask_token_id).long().argmax(1)
    else:
        at = batch["attention_mask"].sum(1) - 1
    scores = logits[torch.arange(len(facts)), at]
    hits = []
    for row, fact in zip(scores, facts, strict=True):
        first = [tokenizer(f" {option}", add_special_tokens=False)["input_ids"][0] for option in fact.options]
        hits.append(fact.options[int(row[first].argmax())] == fact.answer)
    return hits


@contextmanager
def _progress(name: str, steps: int) -> Any:
    """A progress bar on a terminal, a line every tenth of the steps elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"pre-training {name}", total=steps)
            yield lambda step, loss: bar.update(task, completed=step, description=f"{name} loss {loss:.3f}")
    else:
        every = max(1, steps // 10)

        def line(step: int, loss: Any) -> None:
            if step % every == 0:
                print(
                    f"pre-training {name}: step {step} of {steps}, loss {loss:.4f}",
                    file=sys.stderr,
                    flush=True,
                )

        yield line
