# What every rules file needs: the checked plan, the environment of the jobs, one writer at a time.
from pathlib import Path

from snakemake.exceptions import WorkflowError

from assyllm.artifacts import ArtifactError
from assyllm.claims.shown import SEEDS, SWEEPS
from assyllm.cost.same_step import SAME_STEP
from assyllm.figures import about, reads, topic
from assyllm.params import ASSEMBLING, BASELINES, SHARES, STUDIES, TUNED
from assyllm.results import FIGURE_TABLES, TABLES
from assyllm.study import (
    Plan,
    code_sha,
    contents,
    hold,
    job_environment,
    kept,
)

if config:
    raise WorkflowError(
        "--config and --configfile change nothing here: knobs are in params.yaml; a preset's: --directory presets/<name>"
    )

job_environment()

try:
    PLAN = Plan(Path("params.yaml"))
except ArtifactError as error:
    raise WorkflowError(f"params.yaml: {str(error).removeprefix('params.yaml: ')}")


# Snakemake's own lock outlives a killed run; this one ends with the process (profiles/default sets nolock). Who only plans
# (`snakemake -n`) or reads takes none.
onstart:
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
    size="|".join(STUDIES),
    study="(/({}))?".format("|".join(sorted({*STUDIES} - {"default"}))),
    name=r"\w+",


def sections(rule_name):
    """Params of a rule: the JSON of the sections that its stage declares, for the wildcards' setting, in a file."""
    return lambda wildcards: kept(
        PLAN.sections(
            rule_name,
            wildcards.get("setting") or wildcards.get("variant") or "base",
            wildcards.get("method"),
        )
    )


def above(rule_name, pattern):
    """Input of a rule: ``pattern`` at the variant of ``rule_name`` that the wildcards' setting needs."""
    return lambda wildcards: pattern.format(
        variant=PLAN.variant(
            rule_name, wildcards.get("setting") or wildcards.get("variant")
        ),
        **{key: value for key, value in wildcards.items() if key not in ("variant",)},
    )


def base_model(wildcards):
    """The member that this one is continued from, if any."""
    base = PLAN.at(wildcards.variant).zoo.models[wildcards.model].continued_from
    return f"data/zoo/{wildcards.variant}/seed{wildcards.zoo}/{base}" if base else []


def zoo_folders(wildcards):
    """The members of the zoo that a setting or a variant is of, or those that a baseline is given."""
    setting = wildcards.get("setting") or wildcards.variant
    method = wildcards.get("method")
    variant = PLAN.variant("download", setting)
    zoo = wildcards.get("zoo") or "0"
    models = PLAN.models(setting, method) if method else PLAN.at(setting).zoo.models
    return [f"data/zoo/{variant}/seed{zoo}/{model}" for model in models]


def passages(wildcards):
    """The tasks whose passages this zoo's own models are pre-trained on, if params say so."""
    corpus = PLAN.at(wildcards.variant).zoo.pretrain.corpus
    return (
        f"data/tasks/{PLAN.variant('tasks', wildcards.variant)}"
        if str(corpus) == "passages"
        else []
    )


def sensitivity_folder(wildcards):
    """Scores and moments, where the setting's quantization reads them."""
    variant = PLAN.variant("sensitivity", wildcards.variant)
    needed = PLAN.at(wildcards.variant).quantize.needs_sensitivity
    return f"data/sensitivity/{variant}/zoo{wildcards.zoo}" if needed else []


def products(size):
    """All that a study other than the default one comes to, for whoever asks for it."""
    return lambda wildcards: [
        *(run.folder for run in PLAN.runs(size)),
        f"data/results/{size}/metrics.csv",
        *(f"figures/{size}/{name}.png" for name in PLAN.figures(size)),
    ]


def drawable():
    """Every study's figures whose tables are there."""
    folders = {
        size: "" if size == "default" else f"{size}/"
        for size in STUDIES
        if getattr(PLAN.params.study, size) is not None
    }
    return [
        f"figures/{folder}{name}.png"
        for size, folder in folders.items()
        for name in PLAN.figures(size)
        if all(
            Path(f"data/results/{folder}{table}.csv").is_file() for table in reads(name)
        )
    ]


def size_of(wildcards):
    """The study whose tables these are: the default one lies at the top, the others in folders of their names."""
    return Path(wildcards.study).name or "default"


def run_folders(wildcards):
    """Every run of the study."""
    return [run.folder for run in PLAN.runs(size_of(wildcards))]


def same_step(wildcards):
    """The cost table of the method whose device step this one's is, if any."""
    other = SAME_STEP.get(wildcards.method)
    return f"data/cost/{wildcards.variant}/{other}.csv" if other else []


def shared_run(wildcards):
    """The run of the method whose trajectory this one shares, if any."""
    other = SHARES.get(wildcards.method)
    return (
        f"data/runs/{wildcards.setting}/{other}/zoo{wildcards.zoo}_seed{wildcards.seed}"
        if other
        else []
    )


def precision_tables(wildcards):
    """Accuracy without a re-fit, a table for each seed and zoo."""
    return PLAN.precision_tables(size_of(wildcards))


def precision_pools(wildcards):
    """The pools of the settings that models are put on, in the order of params."""
    curve = getattr(PLAN.params.study, wildcards.size).precision
    variants = [PLAN.variant("quantize", setting) for setting in curve.settings]
    return [f"data/quantized/{variant}/zoo{wildcards.zoo}" for variant in variants]


def precision_options(wildcards, input):
    """``--pool SETTING=FOLDER`` of each."""
    curve = getattr(PLAN.params.study, wildcards.size).precision
    pairs = zip(curve.settings, input.pools, strict=True)
    return " ".join(f"--pool {setting}={folder}" for setting, folder in pairs)


def cost_tables(wildcards):
    """One cost table per method of the study."""
    methods = {run.method for run in PLAN.runs(size_of(wildcards))}
    return sorted(f"data/cost/base/{method}.csv" for method in methods)


def curve_tables(wildcards):
    """The sensitivity tables beside them."""
    return [table.replace(".csv", ".curves.csv") for table in cost_tables(wildcards)]


def score_folders(wildcards):
    """The scores of every shard of the clients."""
    variant = PLAN.variant("score", wildcards.setting)
    shards = PLAN.at(wildcards.setting).comparator.shards
    return [
        f"data/scores/{variant}/zoo{wildcards.zoo}_seed{wildcards.seed}/shard{i}"
        for i in range(shards)
    ]


def walked(wildcards):
    """The run whose search the swapper's ablation follows, its pool and its scores."""
    run = PLAN.walked(size_of(wildcards))
    shards = range(PLAN.params.comparator.shards)
    return {
        "pool": f"data/quantized/base/zoo{run.zoo}",
        "walked": run.folder,
        "scores": [
            f"data/scores/base/zoo{run.zoo}_seed{run.seed}/shard{i}" for i in shards
        ],
    }
