"""The order in which the search passes through blocks, as a table: what a device that swaps would be asked for."""

from __future__ import annotations

from typing import Any

from assyllm.blocks.pool import Pool
from assyllm.comparator.compatibility import Rule
from assyllm.federated.rounds import reported
from assyllm.federated.state import State

Walked = list[tuple[list[str], list[str]]]
COLUMNS = ("run_id", "task", "round", "phase", "clients", "passing", "chain", "candidates")


def walk_rows(run_id: str, task: str, pool: Pool, state: State, rule: Rule) -> list[dict[str, Any]]:
    """One row a round and open chain, in the search's order; block ids are space-separated.

    A first round, or one of a survey, passes through every model of the pool, a select round through each open chain
    and the candidates put on it, a round that trains adapters through the reported chain, a head round through every
    finished chain. ``passing`` is the share of the clients that pass: in a head round those that were not surveyed.
    """
    whole: Walked = [([info.id for info in pool.of_model(model)], []) for model in pool.models]
    finished: Walked = [(list(chain.blocks), []) for chain in sorted(state.finished, key=lambda chain: chain.id)]
    tuned: Walked = [(list(reported(state, rule).blocks), [])] if state.finished else []
    rows = []
    for row in state.rows:
        phase = row["phase"]
        walked = {"native": whole, "tune": tuned, "head": finished}.get(phase, row.get("walk", []))
        for chain, candidates in walked if row["participants"] else ():
            rows.append(
                {
                    "run_id": run_id, "task": task, "round": row["round"], "phase": phase,
                    "clients": row["participants"], "passing": row.get("passing", 1),
                    "chain": " ".join(chain), "candidates": " ".join(candidates),
                }
            )  # fmt: skip
    return rows
