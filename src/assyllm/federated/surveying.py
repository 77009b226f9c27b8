"""Choosing all blocks from one survey of the clients: the rule of ``assyllm``, forward passes only.

Some cohorts (``selection.survey_rounds``) are asked once. A client passes its questions through the pool's models as
they are, and sends the head's statistics of all blocks side by side, each block's pooled states in a sketch of
``selection.survey_dims`` numbers. A part of the total's X'X and X'y is what a survey of those blocks alone would have
given, so that the server reads off how much more probable any set of blocks makes the labels
(:meth:`HeadSums.evidence`), and searches among all sets (:mod:`assyllm.assembly.depths`) without asking again: subset
selection from sufficient statistics, as for any regression (Miller 2002), where one block after the other needs rounds
of passes for each.

A block counts in its own context: those before it in its model come with it, the first of which reads the text. So no
adapter stands between blocks, and a chain is some models, each up to a depth. The head's own rounds follow, which read
the chosen blocks with more numbers a block than a survey of the whole pool could send. Who was surveyed keeps the
pooled states (two vectors a block and row: 28 blocks at 7B shapes, 47 questions of two choices and 16 bit come to 31
MB) and passes nothing again there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from assyllm import seeding
from assyllm.adapter.sent import block_features
from assyllm.artifacts import ArtifactError
from assyllm.assembly import depths
from assyllm.assembly.depths import Depths
from assyllm.assembly.head import HeadSums
from assyllm.assembly.search import Chain
from assyllm.assembly.walk import edges
from assyllm.comparator.compatibility import DECIMALS
from assyllm.federated.context import Context
from assyllm.federated.data import ClientView, surveyed
from assyllm.federated.messages import SurveyTask
from assyllm.federated.simulate import CohortHeadSums, head_totals, refusals
from assyllm.federated.state import State
from assyllm.federated.witness import Witness
from assyllm.swapper.walks import passed, walk

KEY = "survey"  # of the sums


def start(run: Context, state: State) -> State:
    """The state before the first round; the controls, which ask nobody, have chosen already."""
    rule, models = run.settings.rule, _models(run)
    if not rule.random and not rule.one_model:
        state.phase = "survey"
        return state
    lengths = [len(blocks) for blocks in models]
    if rule.one_model:
        chosen = [tuple(n if i == j else 0 for j in range(len(lengths))) for i, n in enumerate(lengths)]
    else:
        rng = seeding.rng("random depths", run.zoo_seed, run.seed, run.data.task)
        chosen = [depths.drawn(lengths, run.settings.selection.max_blocks, rng)]
    return _finish(run, state, [Chain(_blocks(models, found)) for found in chosen])


def survey(run: Context, state: State) -> State:
    """A round: the next clients are asked, and when enough have answered the blocks are chosen."""
    task = survey_task(run, state)
    asked = ["+".join(blocks) for blocks in task.models]
    run.pool.expect(walk(passed([((), asked)]), "candidate"))
    clients, late, last = run.turn(state)
    sums: dict[str, CohortHeadSums] = {}
    if clients:
        cohort = run.cohort(state, clients)
        sums[KEY] = CohortHeadSums.of(cohort, cohort.surveyed(task.models, task.dims), limit=task.limit)
    totals, refused = head_totals(sums, run.liars, run.settings.federated.least_clients)
    state.dropped += refusals(state.round, refused)
    before = {} if state.survey is None else {KEY: state.survey}
    state.survey = run.believed(state, totals, before, lambda _: _witness(run, task)).get(KEY)
    run.log(state, clients, late, up_sums=sum(part.bytes for part in sums.values()), down=task.bytes)
    state.rows[-1]["walk"] = [[[], asked]]
    state.surveyed = sorted({*state.surveyed, *clients, *late})
    state.tried += 1
    rounds = run.settings.selection.survey_rounds
    enough = rounds is not None and run.decided(state, state.survey is not None, True, rounds)
    return _chosen(run, state) if last or enough else state


def survey_task(run: Context, state: State) -> SurveyTask:
    """What the clients are asked."""
    models, dims = _models(run), run.settings.selection.survey_dims
    limit = run.limits.head([block for blocks in models for block in blocks], dims)
    return SurveyTask(state.round, tuple(models), dims, limit)


def _witness(run: Context, task: SurveyTask) -> Witness:
    """The server's own questions, surveyed as a device's are."""
    return run.witness(KEY, lambda: surveyed(run.walker(State(), "dev"), task.models, task.dims))


def survey_step(task: SurveyTask, data: ClientView) -> HeadSums:
    """A client's statistics of all blocks (what a device does: a pass through every model and one product)."""
    return HeadSums.of(data.surveyed(task.models, task.dims), data.choice_mask, data.answer, limit=task.limit)


def _chosen(run: Context, state: State) -> State:
    """The end of the survey: the set of blocks that makes the labels most probable."""
    total = state.survey
    if run.settings.federated.check_sums:
        total = _witness(run, survey_task(run, state)).pooled(total)
    if total is None:
        raise ArtifactError(f"{run.data.task}: no client answered, so nothing was assembled")
    models, grid = _models(run), run.settings.head.ridge_grid
    columns = _columns(run, models)

    def told(blocks: Sequence[str]) -> float:
        index = torch.cat([columns[block] for block in blocks])
        return round(total.of_columns(index).evidence(grid)[0], DECIMALS)

    most = run.settings.selection.max_blocks
    chain = _blocks(models, depths.best([len(own) for own in models], most, lambda found: told(_blocks(models, found))))
    so_far = [0.0, *(told(chain[: i + 1]) for i in range(len(chain)))]
    gains = tuple(round(b - a, DECIMALS) for a, b in pairwise(so_far))
    for block in chain:
        family = run.pool.info(block).family
        state.chosen = state.chosen | {family: state.chosen.get(family, 0) + 1}
    state.survey, state.tried, state.best = None, 0, Chain(chain).id
    return _finish(run, state, [Chain(chain, gains)])


def _finish(run: Context, state: State, chains: Sequence[Chain]) -> State:
    most = run.settings.selection.max_blocks
    state.finished = [Chain(c.blocks, c.scores, "depth" if len(c.blocks) >= most else "exhausted") for c in chains]
    state.keep([], {name: None for chain in chains for name in edges(chain.blocks)})  # every block in its own context
    run.joins.use(state.joined)
    state.phase = "head"
    return state


def _models(run: Context) -> list[tuple[str, ...]]:
    """The blocks of every model, first to last."""
    return [tuple(info.id for info in run.pool.of_model(model)) for model in run.pool.models]


def _blocks(models: Sequence[Sequence[str]], found: Depths) -> tuple[str, ...]:
    """The blocks that depths stand for, model after model."""
    return tuple(block for blocks, depth in zip(models, found, strict=True) for block in blocks[:depth])


def _columns(run: Context, models: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
    """Block -> where its features stand in the survey."""
    columns, end = {}, 0
    for block in (block for blocks in models for block in blocks):
        begin, end = end, end + block_features(run.pool.info(block).width, run.settings.selection.survey_dims)
        columns[block] = torch.arange(begin, end)
    return columns
