"""Three generated tasks over the embedded world, in the forms of BoolQ, PIQA and OpenBookQA.

They carry the real tasks' names with ``world: embedded`` beside them wherever they are shown. Test and
development items are of two kinds: *seen*, whose fact is in the training data of some client, and *unseen*,
whose (entity, facet) is in nobody's training data and, for the test, not in the development split either: those
can only be answered with what pre-training put into the models.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from assyllm import seeding
from assyllm.artifacts import ArtifactError
from assyllm.tasks.record import Question
from assyllm.tasks.world import CORPUS_WORDINGS, WORDINGS, Fact, World

FORM_OF = {"boolq": "bit", "piqa": "effect", "openbookqa": "value"}
CHOICES = {"boolq": 2, "piqa": 2, "openbookqa": 4}
DEFAULT_TRAIN, DEFAULT_TEST = 800, 1000  # where `tasks.train_items`, `tasks.test_items` are null


def build(world: World, params: Any, world_params: Any, seed: int) -> dict[str, dict[str, list[Question]]]:
    """Every task's train, dev and test questions.

    Args:
        world: the world that is asked about.
        params: section ``tasks``: ``names``, ``train_items``, ``dev_items``, ``test_items`` and
            ``unseen_fraction``, the share of unseen items in dev and test.
        world_params: section ``world``: ``held_out`` and ``wordings``.
        seed: names every draw.

    Returns:
        task -> split -> questions. Ids begin with ``train_``, ``dev_seen_``, ``dev_unseen_``, ``seen_`` or
        ``unseen_`` (test); ``topic`` is the facet.
    """
    return {task: _task(task, world, params, world_params, seed) for task in params.names}


def _task(task: str, world: World, params: Any, world_params: Any, seed: int) -> dict[str, list[Question]]:
    draw = seeding.rng("tasks", seed, task)
    facts = world.facts(FORM_OF[task])
    pairs = sorted({fact.pair for fact in facts})
    order = [pairs[i] for i in draw.permutation(len(pairs))]
    held = round(world_params.held_out * len(order))
    only_test, only_dev = set(order[: held - held // 2]), set(order[held - held // 2 : held])
    train_facts = [f for f in facts if f.pair not in only_test | only_dev]
    trained = _deal(train_facts, params.train_items[task] or DEFAULT_TRAIN, draw)
    seen = list({fact.id: fact for fact in trained}.values())
    wordings = _wordings(FORM_OF[task], world_params.wordings)

    def questions(prefix: str, chosen: list[Fact]) -> list[Question]:
        return [_question(f"{prefix}_{i:04d}", task, fact, wordings, draw) for i, fact in enumerate(chosen)]

    def judged(prefix: str, items: int, unseen: set[tuple[str, str]]) -> list[Question]:
        new = round(params.unseen_fraction * items)
        if new and not unseen:
            raise ArtifactError(
                f"world.held_out: {world_params.held_out} keeps nothing of {task} from training for "
                f"{prefix.rstrip('_') or 'test'}, and tasks.unseen_fraction asks for {new} such questions"
            )
        return questions(f"{prefix}seen", _deal(seen, items - new, draw)) + questions(
            f"{prefix}unseen", _deal([f for f in facts if f.pair in unseen], new, draw)
        )

    return {
        "train": questions("train", trained),
        "dev": judged("dev_", params.dev_items, only_dev),
        "test": judged("", params.test_items or DEFAULT_TEST, only_test),
    }


def _wordings(form: str, kind: str) -> range:
    """Indices of the wordings that questions use: the corpus' own, a new one, or both."""
    known, total = CORPUS_WORDINGS, len(WORDINGS[form])
    return {"corpus": range(known), "new": range(known, total), "both": range(total)}[kind]


def _deal(facts: list[Fact], count: int, draw: np.random.Generator) -> list[Fact]:
    """``count`` facts, every one as often as any other (give or take one)."""
    if not facts:
        return []
    rounds = -(-count // len(facts))
    order = np.concatenate([draw.permutation(len(facts)) for _ in range(max(rounds, 1))])
    return [facts[i] for i in order[:count]]


def _question(id: str, task: str, fact: Fact, wordings: range, draw: np.random.Generator) -> Question:
    choices = list(fact.options)
    if task != "boolq":
        wrong = [option for option in fact.options if option != fact.answer]
        chosen = draw.choice(len(wrong), size=CHOICES[task] - 1, replace=False)
        choices = [fact.answer] + [wrong[i] for i in chosen]
        choices = [choices[i] for i in draw.permutation(len(choices))]
    return Question(
        id=id,
        context="",
        question=fact.ask(wordings[int(draw.integers(len(wordings)))]),
        choices=tuple(choices),
        answer=choices.index(fact.answer),
        topic=fact.facet.name,
        facts=(fact.id,),
    )
