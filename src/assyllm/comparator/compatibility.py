"""compatibility = w CKA + (1 - w) COR, and the named rules that choose by it (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from assyllm import seeding
from assyllm.artifacts import ArtifactError
from assyllm.blocks.pool import Pool

DECIMALS = 4  # scores are rounded before they are compared: float noise must not decide


@dataclass(frozen=True, slots=True)
class Rule:
    """How candidates are scored.

    Attributes:
        cka_weight: w, or None to take the parameter's.
        natural: whether the natural continuation (the next block of the same model) may be chosen. X
            and Y are then the same computation, so that its CKA is 1 and the literal rule rebuilds one model.
        same_model: whether any block of the model that the chain's last block comes from may be chosen. Without
            natural continuations the same model's other blocks still score highest, out of order.
        random: ignore the measurements.
        by_labels: choose by what a candidate's pooled states add to a head on the labels, not by compatibility. Every
            block then counts by what it tells, so that an end block may stand anywhere in a chain.
        survey: choose all blocks at once, by what a head on them would make of the labels; ``by_labels`` is set too, as
            gains add up alike.
        one_model: only the natural continuation may be chosen (a control: one model with the same head).
    """

    cka_weight: float | None = None
    natural: bool = False
    same_model: bool = True
    random: bool = False
    by_labels: bool = False
    survey: bool = False
    one_model: bool = False


RULES: dict[str, Rule] = {
    "paper": Rule(natural=True),
    "paper_distinct": Rule(),
    "paper_other_model": Rule(same_model=False),
    "cka_only": Rule(cka_weight=1.0),
    "cor_only": Rule(cka_weight=0.0),
    "random": Rule(same_model=False, random=True),
    "survey": Rule(natural=True, by_labels=True, survey=True),
    "survey_random": Rule(natural=True, by_labels=True, survey=True, random=True),
    "survey_one_model": Rule(natural=True, by_labels=True, survey=True, one_model=True),
    "probe": Rule(natural=True, by_labels=True),
    "probe_random": Rule(natural=True, by_labels=True, random=True),
    "probe_one_model": Rule(natural=True, by_labels=True, one_model=True),
}


def rule(name: str) -> Rule:
    """A rule by name.

    Raises:
        ArtifactError: an unknown rule; the known ones are named.
    """
    if name not in RULES:
        raise ArtifactError(f"selection.rule: {name!r} is none of {', '.join(RULES)}")
    return RULES[name]


def compatibility(cka: float | None, cor: float, weight: float) -> float | None:
    """w CKA + (1 - w) COR; None (no score) where CKA is needed and has none."""
    if weight == 0:
        return cor
    return None if cka is None else weight * cka + (1 - weight) * cor


def random_score(seed: int, task: str, chain: Sequence[str], candidate: str) -> float:
    """The score of the rule ``random``: the same for every client."""
    return float(seeding.rng("random rule", seed, task, "+".join(chain), candidate).random())


def eligible(pool: Pool, chain: Sequence[str], chosen: Rule) -> list[str]:
    """Blocks that may follow a chain through an adapter: no start blocks (they read ids), none that it holds already.

    A chain without blocks is followed by start blocks.
    """
    if not chain:
        return [block for block in pool.ids if pool.info(block).kind == "start"]
    last = chain[-1]
    model = pool.info(last).model
    found = []
    for block in pool.ids:
        if pool.info(block).kind == "start" or block in chain:
            continue
        if not chosen.natural and pool.before(block) == last:
            continue
        if chosen.one_model and pool.before(block) != last:
            continue
        if not chosen.same_model and pool.info(block).model == model:
            continue
        found.append(block)
    return found


def entering(pool: Pool, chain: Sequence[str], room: int) -> list[str]:
    """Candidates that read the text: a block of a model that the chain holds nothing of, with those before it.

    ``<first>+...+<block>`` (:func:`blocks_of`): what the block computes is then what it computes in its own model.

    Args:
        room: blocks that the chain may still take.
    """
    held = {pool.info(block).model for block in chain}
    found = []
    for model in pool.models:
        own = [info.id for info in pool.of_model(model)]
        found += ["+".join(own[:depth]) for depth in range(1, min(len(own), room) + 1) if model not in held]
    return found


def blocks_of(candidate: str) -> tuple[str, ...]:
    """The blocks of a candidate, in order: one, or those that enter together."""
    return tuple(candidate.split("+"))


def best(scores: Mapping[str, float | None], count: int) -> list[str]:
    """The ``count`` best ids: scores rounded, ties by id, ids without a score left out."""
    ranked = [(-round(score, DECIMALS), name) for name, score in scores.items() if score is not None]
    return [name for _, name in sorted(ranked)[:count]]
