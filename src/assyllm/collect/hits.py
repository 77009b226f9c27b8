"""Right and wrong answers, question by question: by groups of runs, compared, and their differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np

from assyllm.artifacts import ArtifactError
from assyllm.evaluate import paired_bootstrap
from assyllm.params import Evaluate, setting_values, values_text

LEADER = "assyllm"  # whom others are held against in the tables of zoos and of unequal clients
Rows = list[dict[str, str]]
Group = TypeVar("Group")
Again = TypeVar("Again")  # a run among those of a group


class Asked(NamedTuple):
    """A test question, and what it is about: those about one thing are right or wrong together."""

    task: str
    question: str
    about: str


Hits = dict[Asked, int]  # 0 or 1


def told_apart(predictions: Rows) -> Rows:
    """Predictions with questions of one name that are about something else (another generated world's) told apart.

    The first keeps the name; another is called by what it is about too.
    """
    about: dict[tuple[str, str], str] = {}  # by task and question
    return [
        p
        if about.setdefault((p["task"], p["question"]), p["about"]) == p["about"]
        else {**p, "question": f"{p['question']} about {p['about']}"}
        for p in predictions
    ]


@cache  # one object a question: runs are compared key by key
def asked(task: str, question: str, about: str) -> Asked:
    """The question of a prediction; those of real tasks are about themselves."""
    return Asked(task, question, about if about != question else f"{task}/{question}")


def hits_by(
    predictions: Rows, key: Callable[[dict[str, str]], tuple[Group, Again] | None]
) -> dict[Group, dict[Again, Hits]]:
    """Hits by a group of runs and by run, both of which ``key`` says of a prediction; None leaves it out."""
    hits: dict[Group, dict[Again, Hits]] = {}
    for p in predictions:
        if (found := key(p)) is not None:
            group, run = found
            question = asked(p["task"], p["question"], p["about"])
            hits.setdefault(group, {}).setdefault(run, {})[question] = int(p["correct"])
    return hits


def compared(runs: Sequence[Hits], ev: Evaluate) -> tuple[float, float, float]:
    """Mean and interval over runs that answered the same questions (:func:`paired_bootstrap`).

    Raises:
        ArtifactError: they answered others.
    """
    keys = sorted(runs[0])
    if any(run.keys() != runs[0].keys() for run in runs):
        raise ArtifactError(f"{keys[0].task}: runs with other test questions cannot be compared")
    values = [np.array([run[key] for key in keys]) for run in runs]
    return paired_bootstrap(values, [key.about for key in keys], ev.bootstrap_samples, ev.interval)


def less(mine: Hits, theirs: Hits) -> Hits:
    """One run's hits less another's, question by question."""
    return {key: hit - theirs[key] for key, hit in mine.items()}


def of_task(hits: Hits, task: str) -> Hits:
    """The hits of one task, or of all."""
    return {key: hit for key, hit in hits.items() if task in ("all", key.task)}


def same_questions(mine: dict[Again, Hits], theirs: dict[Again, Hits]) -> bool:
    return mine.keys() == theirs.keys() and all(own.keys() == theirs[run].keys() for run, own in mine.items())


@cache
def but(setting: str, *keys: str) -> str:
    """A setting's text without some of its keys: without ``zoo.seed``, runs on several zoos repeat one setting."""
    return values_text({key: value for key, value in setting_values(setting).items() if key not in keys})
