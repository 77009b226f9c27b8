"""Stage ``cost``: who can run a method and what a step of it costs, as tables that runs and figures read."""

from __future__ import annotations

from pathlib import Path

from assyllm.params import CLOSED_FORM, parse_sections
from assyllm.results import read_table, write_table

SECTIONS = ("zoo", "blocks", "fleet", "cost", "quantize", "frozen_base", "baselines")
UNREAD = {
    "baselines.model": "",  # every member of the zoo has its rows, whichever is fine-tuned
    "baselines.evaluate_every": 1,
    "baselines.test_every": 1,
    "baselines.closed_form": CLOSED_FORM,
    "cost.device": "tx2",  # steps are timed on every known one
    "blocks.edge_to_middle": 1.0,  # whatever the blocks, a device holds a few layers
    "blocks.blocks_per_model": None,
}
# beside what is imported (study.code_sha)
CODE = ("cost/devices.csv", "params/names.py", "params/baselines.py", "params/pool.py")


def run(
    params: str, code_sha: str, method: str, out: Path, curves: Path | None = None, same_step: Path | None = None
) -> None:
    """Write ``out``: one row per zoo member and memory class for ``method``; and ``curves``: its sensitivity.

    Args:
        same_step: table of the method whose device step is this one's, if any: nothing is traced then.
    """
    p = parse_sections(params, SECTIONS)
    if same_step is not None:
        from assyllm.cost.same_step import taken_over

        if curves is not None:  # they are that method's
            write_table(curves, [], ["method", "source"])
        write_table(out, taken_over(method, read_table(same_step), p.fleet))
        return
    from assyllm.cost import participation as made

    adapters = p.baselines.low_rank(method)
    declared = (p.fleet, p.cost, p.quantize, p.frozen_base, adapters)
    if curves is not None:
        write_table(curves, made.curves(method, *declared), made.CURVES)
    write_table(out, made.participation(method, p.zoo, p.blocks, *declared))
