"""What the server does in a round: check the votes, weigh them, add the sums. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from statistics import median

from assyllm.adapter.linear import LinearSums
from assyllm.comparator import compatibility as by
from assyllm.comparator.cka import HsicTerms
from assyllm.federated.messages import CandidateSums, Dropped, ScoreReply, ScoreTask, Vote
from assyllm.federated.secure_sum import secure_sum

Key = tuple[str, str]  # chain id, block


@dataclass(frozen=True)
class Tally:
    """What the rounds of one block choice have brought so far."""

    weight: Mapping[Key, float] = field(default_factory=dict)  # what the clients' votes come to, see `server_step`
    votes: Mapping[Key, int] = field(default_factory=dict)
    hsic: Mapping[Key, HsicTerms] = field(default_factory=dict)
    adapter: Mapping[Key, LinearSums] = field(default_factory=dict)


def server_step(tally: Tally, task: ScoreTask, replies: Sequence[ScoreReply]) -> tuple[Tally, list[Dropped]]:
    """Add a round's replies to the tally.

    ``task.vote`` says what the votes of a round come to:

    - ``weighted``: compatibility x the client's share of the cohort's examples, summed ("in the manner of
      FedAvg"; paper section 3.1). One client of many examples, or a few liars together, may decide it.
    - ``median``: the median over the clients that answered, each coordinate (block) by itself; a block that a
      client has no score for counts 0 (Yin 2018). Fewer than half of the clients cannot move it out of what the
      others say.
    - ``borda``: a client's last block gets one point, the one before two, and so on, whatever score it claims.

    Replies are taken in the order of client numbers, sums in float64, so the result does not depend on the order
    of arrival. A vote that is not finite, out of [-1, 1], for an unknown chain or block, given twice, or beyond
    the ballot is dropped, as is a client's second reply; every one is listed. Sums that are not finite, of other
    shapes than were asked for, or break the task's limits, or are not of all the candidates that were asked for
    (totals over unlike clients would tell one's part by subtraction), are left out with the client's votes; where
    fewer than ``task.least`` clients are left, the round counts for nothing.
    """
    dropped: list[Dropped] = []
    known = {("+".join(chain), block) for chain, blocks in task.candidates.items() for block in blocks}
    accepted = []
    seen: set[int] = set()
    for reply in sorted(replies, key=lambda r: r.client):
        why = _refused(reply, task, seen) or _lacking(reply, task, known)
        if why:
            dropped.append(Dropped(task.round, reply.client, "", "", why))
            continue
        seen.add(reply.client)
        accepted.append(reply)
    totals, refused = secure_sum(
        [(reply.client, _known_sums(reply, task, known, dropped)) for reply in accepted], task.limits, task.least
    )
    dropped += [Dropped(task.round, client, "", "", why) for client, why in refused.items()]
    accepted = [reply for reply in accepted if reply.client not in refused]
    if len(accepted) < task.least:  # what they say is not backed by any sum
        accepted = []
    total = sum(reply.examples for reply in accepted)
    weight, votes = dict(tally.weight), dict(tally.votes)
    hsic, adapter = dict(tally.hsic), dict(tally.adapter)
    said: dict[Key, list[float]] = {}
    for reply in accepted:
        for place, vote in _places(_valid_votes(reply, task, known, dropped)):
            key = (vote.chain, vote.block)
            score = max(0.0, vote.score)
            points = float(task.ballot(tuple(vote.chain.split("+"))) - place)
            worth = {"weighted": reply.examples / total * score, "median": score, "borda": points}
            said.setdefault(key, []).append(worth[task.vote])
            votes[key] = votes.get(key, 0) + 1
    for key, part in totals.items():
        hsic[key] = hsic[key] + part.hsic if key in hsic else part.hsic
        if part.adapter is not None:
            adapter[key] = adapter[key] + part.adapter if key in adapter else part.adapter
    for key, values in said.items():
        silent = [0.0] * (len(accepted) - len(values))
        weight[key] = weight.get(key, 0.0) + (median([*values, *silent]) if task.vote == "median" else sum(values))
    return Tally(weight, votes, hsic, adapter), dropped


def _places(votes: Sequence[Vote]) -> list[tuple[int, Vote]]:
    """Votes with their place (0 = best) among the client's on the same chain."""
    placed: list[tuple[int, Vote]] = []
    count: dict[str, int] = {}
    for vote in sorted(votes, key=lambda v: (-v.score, v.block)):
        placed.append((count.get(vote.chain, 0), vote))
        count[vote.chain] = count.get(vote.chain, 0) + 1
    return placed


def decide(tally: Tally, task: ScoreTask) -> dict[str, list[tuple[str, float]]]:
    """The K winners of every chain with the compatibility that is recorded for them.

    Winners have the greatest vote weight, ties by block id. The recorded compatibility divides the cohort's
    HSIC sums once (a mean of the clients' ratios would be biased); without a score it is COR's part alone.
    """
    winners: dict[str, list[tuple[str, float]]] = {}
    for chain, blocks in task.candidates.items():
        name = "+".join(chain)
        weights: dict[str, float | None] = {
            block: tally.weight[name, block] for block in blocks if (name, block) in tally.votes
        }
        winners[name] = [(block, _recorded(tally, task, name, block)) for block in by.best(weights, task.kept)]
    return winners


def _recorded(tally: Tally, task: ScoreTask, chain: str, block: str) -> float:
    if task.random:
        return task.random[chain, block]
    terms = tally.hsic.get((chain, block))
    known = float(terms.cka()[0]) if terms is not None and terms.scored()[0] else None
    cor = task.cor[chain, block]
    score = by.compatibility(known, cor, task.weight)
    return round((1 - task.weight) * cor if score is None else score, by.DECIMALS)


def _refused(reply: ScoreReply, task: ScoreTask, seen: set[int]) -> str:
    if reply.client in seen:
        return "a second reply"
    if reply.round != task.round:
        return f"a reply to round {reply.round}"
    if not isinstance(reply.examples, Integral):
        return f"{reply.examples!r} is no number of examples"
    if reply.examples < 1:
        return "no examples"
    if reply.examples > task.most:
        return "more examples than allowed"
    return ""


def _lacking(reply: ScoreReply, task: ScoreTask, known: set[Key]) -> str:
    """Why a reply's sums do not go with the others', "" if they do."""
    if known - set(reply.sums):
        return "sums of some candidates are missing"
    adapted = {key for key in known if reply.sums[key].adapter is not None}
    if adapted != set(task.adapted):
        return "adapter sums of other candidates than were asked for"
    return "" if all(reply.sums[key].fits(task.adapted.get(key)) for key in known) else "sums of other shapes"


def _known_sums(
    reply: ScoreReply, task: ScoreTask, known: set[Key], dropped: list[Dropped]
) -> dict[Key, CandidateSums]:
    for key in sorted(set(reply.sums) - known):
        dropped.append(Dropped(task.round, reply.client, *key, "sums for an unknown block"))
    return {key: reply.sums[key] for key in sorted(set(reply.sums) & known)}


def _valid_votes(reply: ScoreReply, task: ScoreTask, known: set[Key], dropped: list[Dropped]) -> list[Vote]:
    kept: list[Vote] = []
    taken: set[Key] = set()
    count: dict[str, int] = {}
    for vote in reply.votes:
        key = (vote.chain, vote.block)
        why = ""
        if key not in known:
            why = "unknown chain or block"
        elif key in taken:
            why = "given twice"
        elif not isinstance(vote.score, Real) or not math.isfinite(vote.score):
            why = "score is not finite"
        elif abs(vote.score) > 1 + 1e-6:
            why = "score out of range"
        elif count.get(vote.chain, 0) >= task.ballot(tuple(vote.chain.split("+"))):
            why = f"more than {task.ballot(tuple(vote.chain.split('+')))} votes on a chain"
        if why:
            dropped.append(Dropped(task.round, reply.client, vote.chain, vote.block, why))
            continue
        taken.add(key)
        count[vote.chain] = count.get(vote.chain, 0) + 1
        kept.append(vote)
    for chain in sorted({chain for chain, _ in known} - set(count)):
        dropped.append(Dropped(task.round, reply.client, chain, "", "no vote on this chain"))
    return kept
