"""What a run that assembled blocks asked of one client, at true shapes: its recorded walk, priced. No torch.

``walk.csv`` says which chains and candidates every round passed through (``a+b``: blocks that enter together). What
blocks give in their own models is computed once a round, whatever chains it is a part of. A block of a zoo's member
stands for its share of the layers of the real model that the member stands for, has that model's widths, and counts for
as many candidates as it holds of the blocks that model is cut into. Embeddings and output heads compute nothing to
speak of.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from assyllm.adapter.sent import ID, NUMBER, arriving_sums, block_features, head_sums, linear_sums
from assyllm.blocks.segment import segments
from assyllm.cost.shapes import Shape, shape_of
from assyllm.params import Assembling, Assemblings, Blocks, Zoo, is_base, setting_values

# a training step walks the chain, walks it again layer by layer, and passes gradients to the inputs of frozen layers
TRAINING = 3


class Block(NamedTuple):
    """A block of a member: the layers from ``start`` up to ``end``."""

    model: str
    start: int
    end: int

    @classmethod
    def of(cls, name: str) -> Block:
        """The block called ``<model>:<start>-<end>``."""
        model, _, layers = name.rpartition(":")
        start, end = layers.split("-")
        return cls(model, int(start), int(end))


@dataclass(frozen=True, slots=True)
class Spent:
    """One client's place in every round: passes through the reference model, bytes, and bytes of the largest round.

    ``walks`` is a mean over clients, which energy hangs on. A round lasts as long as its slowest client: ``course`` are
    the passes of the slowest in all rounds so far, after each, which time hangs on.
    """

    walks: float
    course: tuple[float, ...]
    traffic: float
    up: float
    down: float


class Prices:
    """Work and bytes of blocks and joins at true shapes.

    Args:
        names: block ids, those of a model's last blocks among them.
        reference: the member in whose passes work is counted.
        weight_bytes: of a number of an adapter or a gradient; statistics are float32.
    """

    def __init__(
        self, zoo: Zoo, blocks: Blocks, names: Iterable[str], reference: str, chosen: Assembling, weight_bytes: int
    ) -> None:
        self.shapes: dict[str, Shape] = {name: shape_of(member.stands_for) for name, member in zoo.models.items()}
        self.cut = {name: len(segments(shape.layers, blocks)) for name, shape in self.shapes.items()}
        self.layers: dict[str, int] = defaultdict(int)
        for block in map(Block.of, names):
            self.layers[block.model] = max(self.layers[block.model], block.end)
        whole = self.shapes[reference]
        self.pass_through = whole.layers * whole.layer_parameters
        self.chosen, self.weight_bytes = chosen, weight_bytes

    def share(self, block: Block) -> float:
        """Of its model's layers."""
        return (block.end - block.start) / self.layers[block.model]

    def candidates(self, block: Block) -> float:
        """How many blocks of the real model it stands for."""
        return self.share(block) * self.cut[block.model]

    def width(self, block: Block) -> int:
        """Of its states."""
        return self.shapes[block.model].hidden

    def work(self, blocks: Sequence[Block], joins: float = 0.0) -> float:
        """Passes through the reference model that the blocks' layers and ``joins`` weights of adapters come to."""
        shapes = ((block, self.shapes[block.model]) for block in blocks)
        layers = sum(self.share(block) * shape.layers * shape.layer_parameters for block, shape in shapes)
        return (layers + joins) / self.pass_through

    def join(self, last: Block, block: Block, trained: bool = False) -> int:
        """Weights that compute in the adapter between two blocks.

        0 where the second follows in its own model, or begins it and reads the text itself.
        """
        if block.start == 0 or (last.model, last.end) == (block.model, block.start):
            return 0
        arriving, width = self.width(last), self.width(block)
        if trained:  # cross-attention: projection, query, key, value, output
            heads = self.shapes[last.model].heads * (width // self.shapes[block.model].heads)
            return arriving * width + width + arriving * heads + 2 * width * width + heads * width
        if self.chosen.adapter.kind == "fixed_attention":
            return patterns(self.shapes[block.model]) * width * width + self.rank_weights(last, block)
        return arriving * width + width

    def rank_weights(self, last: Block, block: Block) -> int:
        """What is sent of a ``fixed_attention`` adapter (``FixedAttentionAdapter.sent_bytes``): down, up, bias."""
        rank = self.chosen.adapter.rank
        return rank * (self.width(last) + self.width(block)) + self.width(block)

    def sent(self, last: Block, block: Block, trained: bool = False) -> float:
        """Bytes of an adapter; the re-reading part of ``fixed_attention`` ships with the pool."""
        weights = self.join(last, block, trained)
        if weights and not trained and self.chosen.adapter.kind == "fixed_attention":
            weights = self.rank_weights(last, block)
        return self.weight_bytes * weights

    def features(self, blocks: Sequence[Block]) -> int:
        """Of the head on a chain, whose blocks are ``max_blocks`` at most there too: it reads one state of each.

        Work counts a block's share of the layers instead (:meth:`work`), which is more than as many blocks of the real
        model's cut have: bytes are those of the setting, work is an upper bound.
        """
        return sum(block_features(self.width(block), self.chosen.head.sketch_dims) for block in blocks)

    def surveyed(self, blocks: Sequence[Block]) -> float:
        """Features of a survey."""
        dims = self.chosen.selection.survey_dims
        return sum(self.candidates(block) * block_features(self.width(block), dims) for block in blocks)

    def voting(self, chain: Sequence[Block], found: Sequence[Sequence[Block]]) -> tuple[float, float]:
        """Bytes (up, down) of a client that votes for candidates on a chain (``federated.messages``).

        Up: votes, HSIC terms and adapter sums of every candidate; what the sums share (X'X) once a chain.
        Down: ids, COR, and the adapters of the candidates and of the chain.
        """
        last = chain[-1]
        tried, sums, adapters = 0.0, 0.0, 0.0
        shared = arriving_sums(self.width(last))
        for (block,) in found:
            count = self.candidates(block)
            tried += count
            if self.join(last, block):
                own = linear_sums(self.width(last), self.width(block)) - shared
                sums += count * own if self.chosen.adapter.kind != "fixed_attention" else 0.0  # fitted on public text
                adapters += count * self.sent(last, block)
        up = self.chosen.selection.kept_per_round * (2 * ID + NUMBER) + 3 * NUMBER * tried
        up += sums + shared if sums else 0
        return up, ID * len(chain) + (ID + NUMBER) * tried + adapters + sum(self.chain(chain, self.sent))

    def probing(self, chain: Sequence[Block], found: Sequence[Sequence[Block]]) -> tuple[float, float]:
        """Bytes (up, down) of a client that probes candidates on a chain (``federated.messages``).

        Up: the head's sums of every candidate. Down: ids, the chain's head, the adapters of both.
        """
        up, down = 0.0, ID * len(chain) + NUMBER * self.features(chain) + sum(self.chain(chain, self.sent))
        for blocks in found:
            count = self.candidates(blocks[-1])
            up += count * head_sums(self.features(blocks[-1:]))
            down += count * (ID + (self.sent(chain[-1], blocks[0]) if chain else 0.0))
        return up, down

    def chain(self, chain: Sequence[Block], of: Any, trained: int = 0) -> list[float]:
        """``of(last, block, trained)`` for every join of a chain, the last ``trained`` of them trained."""
        joined = [pair for pair in pairwise(chain) if self.join(*pair)]
        return [of(*pair, i >= len(joined) - trained) for i, pair in enumerate(joined)]


def patterns(shape: Shape) -> int:
    """Patterns that a block's re-reading sees (``adapter.fixed_attention.patterns``)."""
    return 3 if shape.causal else 4


def spent(walk: Sequence[Mapping[str, str]], reported: str, trained: int, prices: Prices) -> Spent:
    """A client's place in a run on one task.

    Args:
        walk: the task's rows of ``walk.csv``; a head round costs a place the mean over those that pass and the others.
        reported: blocks of the model that the run reports; the others' heads are for the record and not priced.
        trained: how many of its joins were trained.
    """
    chosen, model = prices.chosen, [Block.of(name) for name in reported.split()]
    probes = chosen.selection.by_labels
    rounds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])  # walks, bytes up, bytes down
    known: dict[str, float] = defaultdict(float)  # of a round's walks, what clients need not do that have the states
    for (number, name), end in _alone(walk, compared=not probes).items():
        rounds[number][0] += prices.work([Block(name, 0, end)])
    for row in walk:
        chain, found = _asked(row)
        work, up, down = rounds[row["round"]], 0.0, 0.0
        if row["phase"] == "select":
            lasts = [blocks[-1] for blocks in found]
            tried = [last for last, blocks in zip(lasts, found, strict=True) if not natively([*chain, *blocks])[-1]]
            joins = [prices.candidates(block) * prices.join(chain[-1], block) for block in tried]
            passed = [block for block, own in zip(chain, natively(chain), strict=True) if not own]
            work[0] += prices.work([*passed, *tried], sum(prices.chain(chain, prices.join)) + sum(joins))
            up, down = (prices.probing if probes else prices.voting)(chain, found) if found else (0.0, 0.0)
        elif row["phase"] == "survey":  # one row a round: all models
            blocks = [block for own in found for block in own]
            work[0] += prices.work(blocks)
            up, down = head_sums(round(prices.surveyed(blocks))), ID * sum(map(prices.candidates, blocks))
        elif row["phase"] == "native":  # terms of all pairs of blocks up; histograms of a few kB are left out
            work[0] += prices.work(chain)
            up = NUMBER * sum(map(prices.candidates, chain)) * (sum(prices.cut.values()) + 1) / 2
        elif row["chain"] == reported and row["phase"] == "tune":
            work[0] += TRAINING * prices.work(model, sum(prices.chain(model, prices.join, trained)))
            up = sum(prices.chain(model, lambda *pair: prices.sent(*pair) * pair[2], trained))
            down = ID * len(model) + sum(prices.chain(model, prices.sent, trained))
        elif row["chain"] == reported:
            passing = float(row.get("passing", 1))  # the others have the states from the survey
            whole = prices.work(model, sum(prices.chain(model, prices.join, trained)))
            work[0] += passing * whole
            known[row["round"]] += (1 - passing) * whole if passing else 0.0
            read = model if chosen.head.scope == "all_blocks" else model[-1:]
            up = head_sums(prices.features(read))
            down = ID * len(model) + sum(prices.chain(model, prices.sent, trained))
        work[1] += up
        work[2] += down
    each = list(rounds.values())
    slowest = {int(number): work + known[number] for number, (work, _, _) in rounds.items()}
    return Spent(
        walks=sum(w for w, _, _ in each),
        course=tuple(accumulate(slowest.get(number, 0.0) for number in range(1, max(slowest) + 1))),
        traffic=sum(up + down for _, up, down in each),
        up=max(up for _, up, _ in each),
        down=max(down for _, _, down in each),
    )


def _asked(row: Mapping[str, str]) -> tuple[list[Block], list[tuple[Block, ...]]]:
    """A row's chain, and its candidates: one block each, or those that enter together."""
    candidates = [tuple(map(Block.of, name.split("+"))) for name in row["candidates"].split()]
    return [Block.of(name) for name in row["chain"].split()], candidates


def natively(path: Sequence[Block]) -> list[bool]:
    """Which blocks of a path compute what they do in their own model: from one that reads the text up to an adapter."""
    own: list[bool] = []
    for i, block in enumerate(path):
        follows = bool(own) and own[-1] and (path[i - 1].model, path[i - 1].end) == (block.model, block.start)
        own.append(block.start == 0 or follows)
    return own


def _alone(walk: Iterable[Mapping[str, str]], compared: bool) -> dict[tuple[str, str], int]:
    """(round, model) -> layers of the model that a client passes through as they are, once for all chains.

    Args:
        compared: a rule that votes by CKA, and adapters fitted to what a block natively receives, compare a candidate
            on the chain with the same block in its own model.
    """
    ends: dict[tuple[str, str], int] = defaultdict(int)
    for row in walk:
        if row["phase"] == "select":
            chain, found = _asked(row)
            paths = [chain, *([*chain, *blocks] for blocks in found)]
            passed = [block for path in paths for block, own in zip(path, natively(path), strict=True) if own]
            for block in [*passed, *(block for blocks in found if compared for block in blocks)]:
                ends[row["round"], block.model] = max(ends[row["round"], block.model], block.end)
    return ends


def priced(
    walks: Iterable[Mapping[str, str]], models: Iterable[Mapping[str, Any]], zoo: Zoo, blocks: Blocks,
    reference: str, assembling: Assemblings, weight_bytes: int,
) -> dict[tuple[str, str, str], Spent]:  # fmt: skip
    """(setting, method, task) -> a client's place, mean over runs; bytes of the largest round of any run.

    The base setting, "", is of all zoos. Other settings are priced where they change the selection only.

    Args:
        walks: rows of ``walk.csv`` of all runs.
        models: rows of ``models.csv`` of all runs.
    """
    rows: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in walks:
        rows[row["run_id"], row["task"]].append(row)
    names = {
        name for own in rows.values() for row in own for key in ("chain", "candidates")
        for name in re.split("[ +]", row[key]) if name
    }  # fmt: skip
    found: dict[tuple[str, str, str], list[Spent]] = defaultdict(list)
    for model in models:
        walk, setting = rows.get((model["run_id"], model["task"])), str(model["setting"])
        if not walk or str(model["reported"]) != "1" or not (is_base(setting) or selects(setting)):
            continue
        chosen = _changed(assembling, "" if is_base(setting) else setting).of(model["method"])
        prices = Prices(zoo, blocks, names, reference, chosen, weight_bytes)
        place = spent(walk, model["blocks"], int(model["trained_joins"]), prices)
        found["" if is_base(setting) else setting, model["method"], model["task"]].append(place)
    return {
        key: Spent(
            sum(place.walks for place in places) / len(places),
            _mean_course([place.course for place in places]),
            sum(place.traffic for place in places) / len(places),
            max(place.up for place in places),
            max(place.down for place in places),
        )
        for key, places in found.items()
    }


def _mean_course(courses: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """The mean of several runs' courses; one that is over has what it ended with."""
    longest = max(map(len, courses))
    filled = [course + course[-1:] * (longest - len(course)) for course in courses]
    return tuple(sum(values) / len(values) for values in zip(*filled, strict=True))


def _changed(assembling: Assemblings, setting: str) -> Assemblings:
    """The sections with what a setting that :func:`selects` changes."""
    raw = assembling.model_dump()
    for key, value in setting_values(setting).items():
        _, method, section, name = key.split(".")
        raw[method][section][name] = value
    return Assemblings.model_validate(raw)


def selects(setting: str) -> bool:
    """Whether a setting changes nothing but how blocks are selected."""
    keys = setting_values(setting)
    return bool(keys) and all(re.fullmatch(r"assembling\.\w+\.selection\.\w+", key) for key in keys)


def pool_bytes(zoo: Zoo, blocks: Blocks, bits: float, rereading: bool, weight_bytes: int) -> float:
    """What a device downloads once: the pool at ``bits`` a weight, and the blocks' own part of ``fixed_attention``."""
    total = 0.0
    for shape in (shape_of(member.stands_for) for member in blocks.cut(zoo).values()):
        total += shape.parameters * bits / 8
        if rereading:  # of every block but the first
            own = (patterns(shape) * shape.hidden + 1) * shape.hidden
            total += weight_bytes * own * (len(segments(shape.layers, blocks)) - 1)
    return total
