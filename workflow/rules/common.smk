# What every rules file needs: the checked plan, the environment of the jobs, one writer at a time.
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import ExecMode

from assyllm.artifacts import ArtifactError
from assyllm.params import ASSEMBLING, BASELINES, TUNED
from assyllm.results import TABLES
from assyllm.study import Plan, code_sha, hold

try:
    PLAN = Plan(Path("params.yaml"))
except ArtifactError as error:
    raise WorkflowError(f"params.yaml: {error}")

# jobs use this interpreter's assyllm, one thread each: results must not depend on the number of cores
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Snakemake's own lock outlives a killed run; this one ends with the process (profiles/default sets nolock)
if workflow.exec_mode == ExecMode.DEFAULT and not workflow.dryrun:
    try:
        hold()
    except BlockingIOError:
        raise WorkflowError(
            "another run is at work in this folder; wait for it or stop it"
        )


wildcard_constraints:
    variant=r"[\w.-]+",
    setting=r"[\w.-]+",
    method=r"\w+",
    model=r"[\w.-]+",
    zoo=r"\d+",
    seed=r"\d+",
    shard=r"\d+",
    full="(/full)?",
    name=r"\w+",


def sections(rule_name):
    """Params of a rule: the JSON of the sections that its stage declares, for the wildcards' setting."""
    return lambda wildcards: PLAN.sections(
        rule_name,
        wildcards.get("setting") or wildcards.get("variant") or "base",
        wildcards.get("method"),
    )


def above(rule_name, pattern):
    """Input of a rule: ``pattern`` at the variant of ``rule_name`` that the wildcards' setting needs."""
    return lambda wildcards: pattern.format(
        variant=PLAN.variant(
            rule_name, wildcards.get("setting") or wildcards.get("variant")
        ),
        **{key: value for key, value in wildcards.items() if key not in ("variant",)},
    )
