"""The command line: one verb per rule of the workflow, and a few for people. Heavy imports wait for the verb."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assyllm import __version__
from assyllm.artifacts import FULL, ArtifactError, check_target, read_text

if TYPE_CHECKING:
    from assyllm.bench.record import Record

app = typer.Typer(
    name="assyllm",
    help="Federated fine-tuning of large language models by assembling pre-trained blocks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
params_app = typer.Typer(help="Check params.yaml, write its schema.", no_args_is_help=True)
app.add_typer(params_app, name="params")
zoo_app = typer.Typer(help="Look at the models that a study needs.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")
bench_app = typer.Typer(help="Measure a component against its alternatives on this machine.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


def _sections(text: str) -> str:
    """The JSON itself, or the content of ``@file``."""
    if not text.startswith("@"):
        return text
    try:
        return read_text(Path(text[1:]))
    except ArtifactError as error:
        raise ArtifactError(f"--params @{error}") from None


def _target(path: Path | None) -> Path | None:
    """A file that shall be written: refused now, not when all is computed."""
    if path is not None:
        check_target(path)
    return path


ParamsJson = Annotated[
    str, typer.Option("--params", callback=_sections, help="JSON of the sections that this rule declares, or @FILE.")
]


def _same_code(context: typer.Context, planned: str) -> str:
    """The hash that the workflow planned with, if the code is still so (a figure's ``--name`` comes before it)."""
    from assyllm.study import code_sha

    rule, drawn = str(context.info_name), context.params.get("name")
    if re.fullmatch("[0-9a-f]{12}", planned) and planned != code_sha(rule, drawn):
        raise ArtifactError(f"{rule}: the code has changed since this job was planned; run the same command again")
    return planned


CodeSha = Annotated[
    str, typer.Option("--code", callback=_same_code, help="Content hash of the code that runs, as it was planned with.")
]
Out = Annotated[Path, typer.Option(help="Where the result is written, whole or not at all.")]
Seed = Annotated[int, typer.Option(help="Seed of the run.")]
ZooSeed = Annotated[int, typer.Option(help="Seed of the zoo.")]
Folder = Annotated[Path, typer.Option(exists=True, file_okay=False)]
Checkpoint = Annotated[Path, typer.Option(help="Where rounds are saved until the run is done.")]
MethodName = Annotated[str, typer.Option(help="Name of the method.")]
SettingName = Annotated[str, typer.Option(help="Name of the setting.")]
SettingText = Annotated[str, typer.Option(help="The setting as key=value text.")]
BenchJson = Annotated[Path | None, typer.Option("--json", callback=_target, help="File for the ratios.")]
BenchRounds = Annotated[int | None, typer.Option(min=1, help="Rounds.")]


@params_app.command("check")
def params_check(
    path: Annotated[Path, typer.Argument(help="The file to check.")] = Path("params.yaml"),
) -> None:
    """Check every key and value; one line says what is wrong."""
    from assyllm.study import Plan

    Plan(path)
    typer.echo(f"{path}: ok")


@params_app.command("schema")
def params_schema(out: Annotated[Path | None, typer.Option(help="File to write.")] = None) -> None:
    """Print (or write) the JSON schema that editors complete and check against."""
    from assyllm.artifacts import write_text
    from assyllm.params import schema

    text = json.dumps(schema(), indent=2, sort_keys=True) + "\n"
    typer.echo(text, nl=False) if out is None else write_text(out, text)


@app.command()
def reproduced(
    old: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Tables of a study, data/results.")],
    new: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Tables of the same study made again.")],
) -> None:
    """Hold a study's tables against those of the same study made before; fails where they disagree."""
    from assyllm.reproduced import compare

    verdict = compare(old, new)
    typer.echo(str(verdict))
    raise typer.Exit(1 if verdict.differences else 0)


@zoo_app.command("plan")
def zoo_plan(
    path: Annotated[Path, typer.Argument(help="The params.yaml.")] = Path("params.yaml"),
    recorded: Annotated[bool, typer.Option("--recorded", help="Go by recorded facts; do not ask the hub.")] = False,
    pin: Annotated[
        bool, typer.Option("--pin", help="Write today's commits for revisions that are not pinned.")
    ] = False,
) -> None:
    """Print what the models need before anything is fetched; end with an error if it cannot fit."""
    from assyllm.needs import refuse_early, report

    if recorded and pin:
        raise ArtifactError("--pin asks the hub for today's commits, --recorded does not ask it: give one of them")
    text, found = report(path, recorded, pin)
    typer.echo(text)
    refuse_early(found)


@app.command()
def download(
    params: ParamsJson,
    code: CodeSha,
    model: Annotated[str, typer.Option(help="Member of the zoo.")],
    zoo_seed: ZooSeed,
    out: Out,
    base: Annotated[Path | None, typer.Option(help="Folder of the member it is continued from.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Plain text to pre-train on.")] = None,
) -> None:
    """Fetch one model of the zoo, or pre-train it."""
    from assyllm.stages import download as stage

    stage.run(params, code, model, zoo_seed, base, corpus, out)


@app.command()
def tasks(params: ParamsJson, code: CodeSha, out: Out) -> None:
    """Load or generate the tasks; carve the development split."""
    from assyllm.stages import tasks as stage

    stage.run(params, code, out)


@app.command()
def split(params: ParamsJson, code: CodeSha, zoo: Folder, out: Out) -> None:
    """Split the zoo's models into a pool of blocks."""
    from assyllm.stages import split as stage

    stage.run(params, code, zoo, out)


@app.command()
def sensitivity(params: ParamsJson, code: CodeSha, pool: Folder, tasks: Folder, out: Out) -> None:
    """Measure what the pool's blocks feel of their weights."""
    from assyllm.stages import sensitivity as stage

    stage.run(params, code, pool, tasks, out)


@app.command()
def quantize(
    params: ParamsJson,
    code: CodeSha,
    pool: Folder,
    out: Out,
    sensitivity: Annotated[Path | None, typer.Option(help="Scores and moments, where the scheme needs them.")] = None,
) -> None:
    """Quantize the pool's blocks."""
    from assyllm.stages import quantize as stage

    stage.run(params, code, pool, sensitivity, out)


@app.command()
def partition(params: ParamsJson, code: CodeSha, tasks: Folder, seed: Seed, out: Out) -> None:
    """Deal the training items to the clients."""
    from assyllm.stages import partition as stage

    stage.run(params, code, tasks, seed, out)


@app.command()
def cost(
    params: ParamsJson,
    code: CodeSha,
    method: MethodName,
    out: Out,
    curves: Annotated[Path | None, typer.Option(help="Where the sensitivity table is written.")] = None,
    same_step: Annotated[Path | None, typer.Option(help="Table of the method whose device step is this one's.")] = None,
) -> None:
    """Work out which memory class can run a method, and what a step of it costs."""
    from assyllm.stages import cost as stage

    stage.run(params, code, method, out, curves, same_step)


@app.command()
def estimate(
    model: Annotated[str, typer.Option(help="llama-7b, opt-6.7b, ... or a hub's config.json.")],
    method: MethodName,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Rows of a batch.")] = 16,
    length: Annotated[int, typer.Option(min=4, max=100_000, help="Tokens of a row.")] = 256,
    optimizer: Annotated[str, typer.Option(help="sgd (no state) or adamw.")] = "sgd",
    device: Annotated[str | None, typer.Option(help="One device; all if not given.")] = None,
    bits: Annotated[int, typer.Option(help="Of the pool's weights, for methods that assemble blocks.")] = 8,
    resident_layers: Annotated[int, typer.Option(min=1, help="Layers of the pool in memory together.")] = 2,
    targets: Annotated[
        str, typer.Option(help="Of low-rank adapters: query_value or all (linear layers).")
    ] = "query_value",
    rank: Annotated[int, typer.Option(min=1, help="Of low-rank adapters.")] = 8,
    directions: Annotated[int, typer.Option(min=1, max=1000, help="Of a step of fwdllm.")] = 1,
    base_bits: Annotated[int, typer.Option(help="Of a frozen base's weights (lora, fedadapter, fwdllm): 8 or 16.")] = 8,
    reserve_gb: Annotated[float, typer.Option(min=0, help="Of a device's memory, what its system keeps.")] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Peak memory, time and energy of a method's step on a model, without its weights."""
    from assyllm.cost.estimate import estimate as ask
    from assyllm.cost.estimate import table

    answer = ask(
        model, method, batch, length, optimizer, device, bits, resident_layers, targets, rank, directions, base_bits,
        reserve_gb,
    )  # fmt: skip
    typer.echo(json.dumps(answer, indent=2) if as_json else table(answer))


@app.command()
def score(
    params: ParamsJson,
    code: CodeSha,
    pool: Folder,
    tasks: Folder,
    partition: Folder,
    shard: Annotated[int, typer.Option(help="Which share of the clients.")],
    out: Out,
) -> None:
    """Score blocks on the clients' data, as far as that does not depend on the chain."""
    from assyllm.stages import score as stage

    stage.run(params, code, pool, tasks, partition, shard, out)


@app.command()
def federate(
    params: ParamsJson,
    code: CodeSha,
    method: MethodName,
    setting_name: SettingName,
    setting: SettingText,
    pool: Folder,
    tasks: Folder,
    partition: Folder,
    scores: Annotated[list[Path], typer.Option(help="Score folders, one per shard.")],
    cost: Annotated[Path, typer.Option(exists=True)],
    zoo_seed: ZooSeed,
    seed: Seed,
    checkpoint: Checkpoint,
    out: Out,
) -> None:
    """Run AssyLLM's rounds and write the assembled models."""
    from assyllm.stages import federate as stage

    stage.run(
        params, code, method, setting_name, setting, pool, tasks, partition, scores, cost,
        zoo_seed, seed, checkpoint, out,
    )  # fmt: skip


@app.command()
def precision(
    params: ParamsJson,
    code: CodeSha,
    run: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Run whose models are taken.")],
    pools: Annotated[list[str], typer.Option("--pool", help="SETTING=FOLDER of a pool, once for each.")],
    tasks: Folder,
    seed: Seed,
    out: Out,
) -> None:
    """Evaluate a run's models on pools of other precisions, nothing fitted again."""
    from assyllm.stages import precision as stage

    stage.run(params, code, run, pools, tasks, seed, out)


@app.command()
def baseline(
    params: ParamsJson,
    code: CodeSha,
    method: MethodName,
    setting_name: SettingName,
    setting: SettingText,
    zoo: Folder,
    zoo_seed: ZooSeed,
    tasks: Folder,
    partition: Folder,
    cost: Annotated[Path, typer.Option(exists=True)],
    seed: Seed,
    checkpoint: Checkpoint,
    out: Out,
    shared: Annotated[Path | None, typer.Option(exists=True, help="Run whose trajectory the method may share.")] = None,
) -> None:
    """Run a baseline's rounds."""
    from assyllm.stages import baseline as stage

    stage.run(
        params, code, method, setting_name, setting, zoo, zoo_seed, tasks, partition, cost,
        seed, checkpoint, out, shared,
    )  # fmt: skip


@app.command()
def tune(
    params: ParamsJson,
    code: CodeSha,
    method: MethodName,
    zoo: Folder,
    tasks: Folder,
    partition: Folder,
    cost: Annotated[Path, typer.Option(exists=True)],
    out: Out,
) -> None:
    """Search a baseline's learning rate and local epochs on the development split."""
    from assyllm.stages import tune as stage

    stage.run(params, code, method, zoo, tasks, partition, cost, out)


@app.command()
def swap(
    params: ParamsJson,
    code: CodeSha,
    pool: Folder,
    walked: Annotated[Path, typer.Option(help="Run folder whose walk is counted.")],
    scores: Annotated[list[Path], typer.Option(help="Folders of scores, one a shard.")],
    out: Annotated[Path, typer.Option(help="Folder for swap_timeline.csv and swap_ablation.csv.")],
) -> None:
    """Time the swapper's pipelines, count its policies' reads on the search's own walk."""
    from assyllm.stages import swap as stage

    stage.run(params, code, pool, walked, scores, out)


@app.command()
def features(
    params: ParamsJson,
    code: CodeSha,
    pool: Folder,
    tasks: Folder,
    walked: Annotated[Path, typer.Option(help="Run folder whose finished models are looked into.")],
    out: Annotated[Path, typer.Option(help="Folder for feature_differences.csv and compatibility_heatmaps.csv.")],
) -> None:
    """Read single layers: pairs of models in a plane, assembled chains against their blocks' own models."""
    from assyllm.stages import features as stage

    stage.run(params, code, pool, tasks, walked, out)


@app.command()
def collect(
    params: ParamsJson,
    code: CodeSha,
    size: Annotated[
        str,
        typer.Option(
            help="A study of params.yaml: default, full, zoos, worlds, choosing, ablations, non_iid, dropouts, check."
        ),
    ],
    runs: Annotated[list[Path], typer.Option("--run", help="Run folders.")],
    cost: Annotated[list[Path], typer.Option(help="Cost tables.")],
    curves: Annotated[list[Path], typer.Option(help="Sensitivity tables.")],
    out: Out,
    precision: Annotated[list[Path] | None, typer.Option(help="Tables of the stage precision.")] = None,
) -> None:
    """Gather runs into the result tables and judge the claims."""
    from assyllm.stages import collect as stage

    stage.run(params, code, size, runs, cost, curves, precision or [], out)


@app.command()
def figure(
    params: ParamsJson,
    code: CodeSha,
    name: Annotated[str, typer.Option(help="Name of the figure.")],
    results: Annotated[Path, typer.Option(file_okay=False, help="Folder of the tables (some figures read none).")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.pdf, NAME.png and NAME.csv.")],
) -> None:
    """Draw one figure from the result tables."""
    from assyllm.stages import figure as stage

    stage.run(params, code, name, results, out)


@app.command()
def show(
    study: Annotated[str, typer.Option(help="default, full, zoos, ...: as Snakemake's targets.")] = "default",
) -> None:
    """A finished study's test accuracies, as a table on the screen."""
    from assyllm.show import show as write

    write(study)


@app.command()
def compare(
    model_a: Annotated[str, typer.Argument(help="Folder or hub id (id@revision) of a transformers model.")],
    model_b: Annotated[str, typer.Argument(help="The other model.")],
    texts: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Plain text, one text a line.")],
    out: Annotated[Path | None, typer.Option(callback=_target, help="Heatmap to draw (.png, .pdf or .svg).")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", callback=_target, help="File for all scores.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer texts lose their end.")] = 256,
    cka_weight: Annotated[float, typer.Option(min=0, max=1, help="w in w CKA + (1 - w) COR.")] = 0.5,
    cka_batch: Annotated[int, typer.Option(min=4, help="Texts of a minibatch of CKA.")] = 1024,
    bf16: Annotated[bool, typer.Option("--bf16", help="Multiply states in bfloat16.")] = False,
    device: Annotated[str, typer.Option(help="Where the models compute, as torch names it: cpu, cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the models' weights: float32, bfloat16, float16.")] = "float32",
) -> None:
    """Score every layer of a model against every layer of another: CKA, COR, compatibility."""
    from assyllm.artifacts import check_apart, check_outside
    from assyllm.comparator.heatmap import format_of

    for target in (out, json_out):
        if target is not None:
            check_apart(target, texts)
            check_outside(target, *(Path(name) for name in (model_a, model_b) if Path(name).is_dir()))
    if out is not None and json_out is not None and out.resolve() == json_out.resolve():
        raise ArtifactError(f"{out}: both --out and --json; nothing is written")
    if out is not None:
        format_of(out)  # refused now, not when all is computed
    from assyllm.comparator import compare as comparing

    lines = read_text(texts).split("\n")
    table = comparing(
        model_a, model_b, lines, max_tokens=max_tokens, cka_weight=cka_weight, cka_batch=cka_batch, bf16=bf16,
        device=device, dtype=dtype,
    )  # fmt: skip
    typer.echo(str(table))
    if out is not None:
        typer.echo(f"wrote {table.heatmap(out)}")
    if json_out is not None:
        typer.echo(f"wrote {table.write(json_out)}")


@app.command()
def predict(
    model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of a saved model.")],
    questions: Annotated[Path, typer.Option(help="JSON lines: question, choices; context, id, answer if any.")],
    out: Annotated[
        Path | None, typer.Option(callback=_target, help="File for the answers (default: print them).")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the model computes, as torch names it: cpu, cuda.")] = "cpu",
) -> None:
    """Answer questions with an assembled model; where answers are given, say how many are right."""
    from assyllm.artifacts import check_outside, write_text
    from assyllm.assembly.assembled import AssembledModel
    from assyllm.assembly.predict import predict as answer
    from assyllm.assembly.predict import read_asked, shortened
    from assyllm.zoo.device import device_of

    if out is not None and out.exists() and out.samefile(questions):
        raise ArtifactError(f"{out}: the questions themselves; nothing is written")
    if out is not None:
        check_outside(out, model)
    asked = read_asked(questions)
    opened = AssembledModel.from_pretrained(model).to(device_of(device))
    told = [question for question, _ in asked]
    if cut := shortened(opened, told):
        most = opened.recipe.max_tokens
        typer.echo(f"{cut} of {len(told)} questions are longer than {most} tokens even without context", err=True)
    found = answer(opened, told)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    typer.echo(text, nl=False) if out is None else write_text(out, text)
    known = [row["chosen"] == q.answer for row, (q, answered) in zip(found, asked, strict=True) if answered]
    if known:
        typer.echo(f"{sum(known)} of {len(known)} right ({sum(known) / len(known):.4f})", err=True)


@app.command()
def assemble(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml of an assembled model.")],
    pool: Folder,
    out: Out,
    adapters: Annotated[Path | None, typer.Option(help="Its adapters.safetensors (default: beside it).")] = None,
) -> None:
    """Build an assembled model again: its blocks from a pool, its adapters and head from the recipe's side."""
    from assyllm.artifacts import MANIFEST, check_apart
    from assyllm.assembly.assembled import FITTED, RECIPE
    from assyllm.assembly.assembled import assemble as rebuild
    from assyllm.assembly.recipe import Recipe
    from assyllm.quantizer.pool import open_pool

    check_apart(out, pool, recipe, *([adapters] if adapters else []))
    read = Recipe.read(recipe)
    if (out / MANIFEST).is_file() and not ((out / RECIPE).is_file() and Recipe.read(out / RECIPE) == read):
        raise ArtifactError(f"{out}: holds something else than this recipe's model; nothing is written")
    rebuild(read, open_pool(pool), adapters or recipe.parent / FITTED).save_pretrained(out)
    typer.echo(f"wrote {out}: {len(read.slices)} blocks, licence {read.licence}")


@bench_app.command("comparator")
def bench_comparator(json_file: BenchJson = None, rounds: BenchRounds = None) -> None:
    """CKA of all pairs at once against a loop over pairs; its error on known states and in bfloat16."""
    from assyllm.bench import comparator

    _report(comparator.run(rounds or 2), json_file)


@bench_app.command("scoring")
def bench_scoring(json_file: BenchJson = None, rounds: BenchRounds = None) -> None:
    """Block passes that the prefix cache saves; what a client's step costs beside them."""
    from assyllm.bench import scoring

    _report(scoring.run(rounds or 3), json_file)


@bench_app.command("quantizer")
def bench_quantizer(json_file: BenchJson = None, rounds: BenchRounds = None) -> None:
    """Packed linear layers against nf4 and dense 16-bit ones on the CPU."""
    from assyllm.bench import quantizer

    _report(quantizer.run(rounds or quantizer.ROUNDS), json_file)


@bench_app.command("swapper")
def bench_swapper(json_file: BenchJson = None, rounds: BenchRounds = None) -> None:
    """The Block Swapper against its limits, no overlap and accelerate; reads against the optimum."""
    from assyllm.bench import swapper

    _report(swapper.run(rounds), json_file)


def _report(record: Record, json_file: Path | None) -> None:
    for key, ratio in record.ratios.items():
        typer.echo(f"{key:28} {ratio.median:8.3f}   ({ratio.min:.3f} to {ratio.max:.3f})")
    if json_file is not None:
        record.write(json_file)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"assyllm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # one thread a job: the workflow runs jobs side by side, and results must not depend on thread count
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without a character gets its number
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it remarks on a kernel that one may install


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit status 1."""
    gc.set_threshold(10_000)  # importing torch and transformers sets off 880 collections otherwise, a fifth of its time
    try:
        app()
    except ArtifactError as error:
        typer.echo(f"assyllm: {error}", err=True)
        sys.exit(1)
    except OSError as error:  # a full disk, a file that may not be read
        if error.filename is None and error.errno not in FULL:
            raise
        typer.echo(f"assyllm: {error.filename or 'standard output'}: {error.strerror}", err=True)
        sys.stdout = io.StringIO()  # what is left to be written would fail once more on the way out
        sys.exit(1)
