"""The generated world and its tasks: determinism, what text tells, who has seen which fact."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assyllm.artifacts import ArtifactError
from assyllm.tasks import synthetic
from assyllm.tasks.world import CORPUS_WORDINGS, FACETS, FORMS, WORDINGS, World


def knobs(**changes):
    return SimpleNamespace(
        **{"seed": 0, "entities": 20, "facets": 6, "values": 4, "held_out": 0.4, "wordings": "corpus"} | changes
    )


def task_knobs(**changes):
    defaults = {
        "names": ["boolq", "piqa", "openbookqa"],
        "train_items": {"boolq": 60, "piqa": 80, "openbookqa": 80},
        "dev_items": 40,
        "test_items": 60,
        "unseen_fraction": 0.35,
    }
    return SimpleNamespace(**defaults | changes)


def build(seed=0, **changes):
    world = World.build(knobs(**changes))
    return world, synthetic.build(world, task_knobs(), knobs(**changes), seed)


def test_a_world_that_keeps_nothing_from_training_has_no_unseen_questions():
    with pytest.raises(ArtifactError, match=r"world\.held_out: 0\.001 keeps nothing of boolq .* for dev, and tasks\."):
        build(held_out=0.001)


def test_every_word_of_the_table_is_used_once():
    words = [w for f in FACETS for w in (f.name, f.quality, *f.actions)]
    words += [w for f in FACETS for value, effects in f.effects.items() for w in (value, *effects)]
    assert len(words) == len(set(words))


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    assert World.build(knobs()) == World.build(knobs())
    assert World.build(knobs()).value_of != World.build(knobs(), seed=1).value_of
    assert World.build(knobs()).entities != World.build(knobs(), seed=1).entities


@pytest.mark.parametrize("form", FORMS)
def test_facts_follow_from_the_world(form):
    world = World.build(knobs())
    for fact in world.facts(form):
        value = world.value_of[fact.pair]
        if form == "value":
            assert fact.answer == value
        elif form == "effect":
            assert fact.answer == fact.facet.effects[value][fact.facet.actions.index(fact.action)]
        else:
            assert fact.answer == ("yes" if world.bit_of[fact.pair] else "no")
        assert fact.answer in fact.options
        assert len(set(fact.options)) == len(fact.options) == (2 if form == "bit" else 4)


@settings(max_examples=25, deadline=None)
@given(
    facets=st.lists(st.integers(0, 5), min_size=1, unique=True),
    rows=st.integers(1, 40),
    passages=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_a_corpus_tells_only_facts_of_its_facets_and_marks_their_answers(facets, rows, passages, seed):
    world = World.build(knobs())
    corpus = world.corpus(facets, rows, passages, seed)
    assert len(corpus) == rows + passages
    assert corpus == world.corpus(facets, rows, passages, seed)
    true = {
        (fact.ask(w), fact.answer)
        for form in FORMS
        for fact in world.facts(form, facets)
        for w in range(CORPUS_WORDINGS)
    }
    for row in corpus:
        start = 0
        for first, last in row.answers:
            sentence = row.text[start:first].removeprefix(" . ").rstrip()
            assert (sentence, row.text[first:last]) in true
            start = last
        assert start == len(row.text)


@pytest.mark.parametrize("facets", [[], [0, 9]])
def test_a_corpus_of_no_facets_or_of_unknown_ones_is_refused(facets):
    with pytest.raises(ArtifactError, match="of 0 to 5 one at least is expected"):
        World.build(knobs()).corpus(facets, 5, 1, 0)


def test_public_text_does_not_depend_on_any_fact():
    world = World.build(knobs())
    facts = World.build(knobs(), seed=7)
    other = replace(
        world,
        value_of=dict(zip(world.value_of, facts.value_of.values(), strict=True)),
        bit_of={pair: not bit for pair, bit in world.bit_of.items()},
    )
    assert world.public_text(3, 200) == other.public_text(3, 200)
    assert world.public_text(3, 50) != world.public_text(4, 50)


def test_questions_are_right():
    world, tasks = build()
    answers = {fact.id: fact.answer for form in FORMS for fact in world.facts(form)}
    for task, splits in tasks.items():
        for questions in splits.values():
            for q in questions:
                assert q.choices[q.answer] == answers[q.facts[0]]
                assert len(set(q.choices)) == len(q.choices) == synthetic.CHOICES[task]
                assert q.topic in {facet.name for facet in FACETS}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), held_out=st.floats(0.1, 0.8))
def test_unseen_facts_are_in_no_training_item_and_seen_ones_are(seed, held_out):
    _, tasks = build(seed, held_out=held_out)
    for splits in tasks.values():
        trained = {q.facts for q in splits["train"]}
        trained_pairs = {tuple(q.facts[0].split("/")[1:3]) for q in splits["train"]}
        dev_unseen = {tuple(q.facts[0].split("/")[1:3]) for q in splits["dev"] if q.id.startswith("dev_unseen_")}
        for q in splits["dev"] + splits["test"]:
            pair = tuple(q.facts[0].split("/")[1:3])
            assert ("unseen_" in q.id) == (pair not in trained_pairs) == (q.facts not in trained)
            if q.id.startswith("unseen_"):
                assert pair not in dev_unseen


def test_splits_have_the_asked_sizes_and_ids_are_unique():
    _, tasks = build()
    for task, splits in tasks.items():
        assert len(splits["train"]) == task_knobs().train_items[task]
        assert (len(splits["dev"]), len(splits["test"])) == (40, 60)
        assert sum(q.id.startswith("unseen_") for q in splits["test"]) == 21
        ids = [q.id for questions in splits.values() for q in questions]
        assert len(set(ids)) == len(ids)


def test_wordings_of_questions_follow_the_knob():
    new = {form: WORDINGS[form][-1].split("{")[0] for form in FORMS}
    for kind, expected in (("corpus", {False}), ("new", {True}), ("both", {False, True})):
        _, tasks = build(wordings=kind)
        questions = tasks["openbookqa"]["train"]
        assert {q.question.startswith(new["value"]) for q in questions} == expected
