"""What every phase of a run shares: pool, data, settings, cohorts, the server's adapters, the log of a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from assyllm import params
from assyllm.adapter.reading import readings
from assyllm.artifacts import ArtifactError
from assyllm.assembly.head import HeadSums
from assyllm.assembly.walk import Walker
from assyllm.blocks.pool import Pool
from assyllm.comparator import compatibility as by
from assyllm.federated.cohort import in_time, once_each, sample
from assyllm.federated.data import Cohort, TaskData
from assyllm.federated.joins import Joins
from assyllm.federated.liars import Liars
from assyllm.federated.limits import Limits
from assyllm.federated.state import Phase, State
from assyllm.federated.witness import Witness

SPARE = 10  # further rounds for a choice where too few have answered, or nobody has told anything of any candidate


@dataclass(frozen=True)
class Settings:
    """The sections that a run reads."""

    selection: params.Selection
    comparator: params.Comparator
    adapter: params.Adapter
    head: params.Head
    federated: params.Federated

    @property
    def rule(self) -> by.Rule:
        """The selection rule."""
        return by.rule(self.selection.rule)

    @property
    def weight(self) -> float:
        """w of the rule."""
        fixed = self.rule.cka_weight
        return self.comparator.cka_weight if fixed is None else fixed


class Context:
    """One task's run but for its state.

    Args:
        seed: names cohorts, dropouts and draws.
        eligible: clients whose memory suffices; those without data are left out.
        zoo_seed: of the zoo's pre-training; what controls draw from a pool hangs on it too.

    Raises:
        ArtifactError: no client is left.
    """

    def __init__(
        self, pool: Pool, data: TaskData, settings: Settings, seed: int, eligible: Sequence[int], zoo_seed: int = 0
    ) -> None:
        self.pool, self.data, self.settings, self.seed, self.zoo_seed = pool, data, settings, seed, zoo_seed
        self.eligible = [client for client in eligible if len(data.owned[client])]
        if not self.eligible:
            raise ArtifactError(
                f"{data.task}: no client has both the memory (fleet.memory_gb) and the data (partition) to take part"
            )
        if len(self.eligible) < settings.federated.least_clients:
            raise ArtifactError(
                f"{data.task}: {len(self.eligible)} client(s) can take part, fewer than federated.least_clients"
            )
        self.joins = Joins(pool, data, settings.adapter)
        self.limits = Limits(pool, data, settings.federated, settings.head)
        self.liars = Liars(seed, len(data.owned), settings.federated)
        self._witnesses: dict[str, Witness] = {}

    @property
    def after_search(self) -> Phase:
        """What follows the search."""
        return "tune" if self.settings.adapter.trained else "head"

    def sample(self, round_: int) -> tuple[list[int], list[int]]:
        """The clients that answer in a round: those whose reply counts, and those that are too late."""
        federated = self.settings.federated
        answering = sample(self.seed, round_, self.eligible, federated.clients_per_round, federated.dropout)
        return self.counted(round_, answering)

    def counted(self, round_: int, answering: Sequence[int]) -> tuple[list[int], list[int]]:
        """Of the clients that answer, those whose reply counts and those whose does not.

        Late ones do not; nor do all, where fewer than ``federated.least_clients`` are in time: a sum over them is never
        formed, because it would tell too much of each.
        """
        clients, late = in_time(self.seed, round_, answering, self.settings.federated.stragglers)
        if len(clients) < self.settings.federated.least_clients:
            return [], sorted([*clients, *late])
        return clients, late

    def turn(self, state: State) -> tuple[list[int], list[int], bool]:
        """Of rounds that ask every client once (:func:`once_each`), the one that ``state`` is at, counted by its phase.

        Returns:
            Clients whose reply counts, clients whose does not, and whether it is the phase's last round.
        """
        turn = sum(1 for row in state.rows if row["phase"] == state.phase)
        first, federated, most = state.round - turn, self.settings.federated, self.settings.head.rounds
        order = "once" if state.phase == "head" else state.phase
        if state.phase == "survey":
            most = max(most, (self.settings.selection.survey_rounds or 0) + SPARE)
        turns = once_each(
            self.seed, range(first, first + most), self.eligible, federated.clients_per_round, federated.dropout,
            self.counted, federated.least_clients, order,
        )  # fmt: skip
        return *turns[turn], turn + 1 == len(turns)

    def cohort(self, state: State, clients: Sequence[int]) -> Cohort:
        """The clients' questions, their forward passes batched."""
        return Cohort(
            self.pool,
            self.data,
            clients,
            lambda items: self.walker(state, "train", items),
            self.joins,
            self.settings.head,
        )

    def walker(self, state: State, split: str, items: Sequence[int] | None = None) -> Walker:
        """The run's chains over a split's questions, or some of them."""

        def encoded(model: str):  # type: ignore[no-untyped-def]
            whole = self.data.encoded(self.pool, model, split)
            return whole if items is None else whole[list(items)]

        return Walker(self.pool, readings(self.pool, encoded), state.joined)

    def witness(self, key: str, features: Callable[[], Tensor]) -> Witness:
        """The server's questions as a head sees them, kept by ``key``; ``features`` gives theirs ``[N, C, F]``."""
        if key not in self._witnesses:
            dev = self.data.encoded(self.pool, next(iter(self.pool.models)), "dev")
            self._witnesses[key] = Witness(self.settings.head.ridge_grid, features(), dev.choice_mask, dev.answer)
        return self._witnesses[key]

    def believed(
        self,
        state: State,
        totals: Mapping[str, HeadSums],
        before: Mapping[str, HeadSums],
        witness: Callable[[str], Witness],
    ) -> dict[str, HeadSums]:
        """The totals that the server believes, added to those ``before``; the others are listed in ``state.dropped``.

        It believes all, or with ``federated.check_sums`` those that its own questions bear out.
        """
        found = dict(before)
        for key, total in totals.items():
            if self.settings.federated.check_sums and not witness(key).believes(total, before.get(key)):
                why = "a total that the server's own questions contradict"
                state.dropped.append({"round": state.round, "client": None, "chain": key, "block": "", "why": why})
                continue
            found[key] = found[key] + total if key in found else total
        return found

    def cohorts(self, state: State) -> float:
        """How many whole cohorts have answered for what is being chosen."""
        answers = sum(row["participants"] for row in state.rows[len(state.rows) - state.tried :])
        return answers / min(self.settings.federated.clients_per_round, len(self.eligible))

    def decided(self, state: State, told: bool, asked: bool, rounds: int) -> bool:
        """Whether the rounds of a choice are over.

        That is after ``rounds``, but not while nobody has told anything, nor while fewer have answered than
        ``least_answers`` of as many whole cohorts, within :data:`SPARE` rounds more.

        Args:
            told: whether any vote or sum came in; ``asked``: whether there is any candidate.
        """
        enough = told and self.cohorts(state) >= self.settings.selection.least_answers * rounds
        return state.tried >= (rounds if enough or not asked else rounds + SPARE)

    @staticmethod
    def log(
        state: State,
        clients: Sequence[int],
        late: Sequence[int],
        up_votes: float = 0.0,
        up_sums: float = 0.0,
        down: float = 0.0,
    ) -> None:
        """Add a round's row: who took part, who was late, and mean bytes a client by channel (late ones as many).

        Where all that answered were late nothing is computed here, so bytes up are those known beforehand: of tensors
        that are trained or counted; those of votes and of head sums are 0.
        """
        state.rows.append(
            {
                "round": state.round,
                "phase": state.phase,
                "participants": len(clients),
                "bytes_up_votes": float(up_votes),
                "bytes_up_sums": float(up_sums),
                "bytes_up": float(up_votes + up_sums),
                "bytes_down": float(down),
            }
        )
        if late:
            state.rows[-1]["stragglers"] = len(late)
