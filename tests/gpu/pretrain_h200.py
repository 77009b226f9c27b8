"""A zoo of real language, pre-trained on one or two CUDA devices: cards, held-out loss, tokens a second, int8 export.

    PYTHONPATH=src python tests/gpu/pretrain_h200.py --text FOLDER --keep FOLDER --out FOLDER [--seconds 480]

FOLDER of text holds ``*_train.txt.xz`` and ``*_valid.txt.xz``. Shapes and recipe are those of
``presets/language/params.yaml``; how many steps a model makes follows from its share of the seconds and from the
speed of a trial, so that the whole command ends in time (leave out ``--seconds`` for the preset's steps). With two
devices Llama and Vicuna train on the first, the others on the second. Under ``--keep`` remain the models
(``zoo/``), their int8 exports (``export/``) and, for machines that give back small files only, one archive of the
exports cut into parts (``parts/``). ``--trials`` times the speed test's shape, with the preset's rows a step and with
twice as many, and trains nothing (a minute and a half). Needs torch, transformers, tokenizers, safetensors, pydantic.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PRESET = ROOT / "presets/language/params.yaml"
LANES = {1: [["llama", "vicuna", "opt", "bert", "roberta"]], 2: [["llama", "vicuna"], ["opt", "bert", "roberta"]]}
SHARES = {"llama": 0.5, "vicuna": 0.25, "opt": 0.3, "bert": 0.3, "roberta": 0.3}  # of a lane's seconds
WARM, TIMED = 12, 30  # steps of a trial
PART_BYTES = 15 * 2**20
# the shape whose speed is compared with the prototype's: 46.9 M weights multiply (the prototype tied its embeddings)
SPEED = {"family": "llama", "stands_for": "llama-7b", "hidden_size": 512, "intermediate_size": 1408, "layers": 12,
         "heads": 8, "vocabulary": 16384}  # fmt: skip

TRIALS = {"as_it_is": 1, "twice_the_rows": 2}  # rows a step, in the preset's

began = time.perf_counter()


def say(*words: object) -> None:
    """A line with the seconds since the start."""
    print(f"{time.perf_counter() - began:6.1f} s", *words, flush=True)


def tokenise(family: str, options: argparse.Namespace) -> None:
    """Train a family's tokenizer (or take the one under ``--tokenizers``) and write both texts as rows of tokens."""
    import numpy as np

    from assyllm.params import load
    from assyllm.zoo import tokenizers
    from assyllm.zoo.corpus import encode_documents, read_documents
    from assyllm.zoo.families import family as kind_of
    from assyllm.zoo.load import load_tokenizer

    settings = load(PRESET).zoo
    member = next(m for m in settings.models.values() if m.family == family)
    documents = read_documents(next(options.text.glob("*_train.txt.xz")))
    ready = options.tokenizers and options.tokenizers / family
    if ready:
        tokenizer = load_tokenizer(ready)
    else:
        tokenizer = tokenizers.train(kind_of(family), documents, member.vocabulary, settings.pretrain.max_tokens)
    folder = options.keep / "tokens" / family
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    held = read_documents(next(options.text.glob("*_valid.txt.xz")))
    for name, texts in {"valid": held, "train": documents}.items():
        rows = encode_documents(tokenizer, texts, settings.pretrain.max_tokens)
        np.save(folder / f".{name}.npy", np.stack([row.ids for row in rows]).astype(np.uint16))
        os.replace(folder / f".{name}.npy", folder / f"{name}.npy")
    say(f"tokens {family}: {len(rows) * settings.pretrain.max_tokens / 1e6:.1f} M")


def rows_of(family: str, name: str, options: argparse.Namespace) -> list[Any]:
    """A text's rows, as soon as they are written."""
    import numpy as np

    from assyllm.zoo.corpus import TokenRow

    path = options.keep / "tokens" / family / f"{name}.npy"
    while not path.is_file():
        if time.perf_counter() - began > 300:
            raise SystemExit(f"{path}: not written after 300 s")
        time.sleep(0.2)
    ids = np.load(path).astype(np.int32)
    nothing = np.zeros(ids.shape[1], dtype=bool)
    return [TokenRow(row, nothing) for row in ids]


def text_bytes(options: argparse.Namespace, tokenizer: Any, rows: list[Any]) -> float:
    """Bytes of text a token of the held-out rows (for bits a byte)."""
    sample = rows[:400]
    texts = tokenizer.batch_decode([row.ids for row in sample], skip_special_tokens=True)
    return sum(len(text.encode()) for text in texts) / sum(len(row.ids) for row in sample)


def member_of(name: str, settings: Any) -> Any:
    """The preset's member, or the shape of the speed test."""
    from assyllm.params import Member

    return Member(**SPEED) if name == "speed" else settings.models[name]


class Clock:
    """Tokens a second after a trial's first steps, which compile."""

    def __init__(self, warm: int) -> None:
        self.warm, self.start, self.steps = warm, 0.0, 0

    def __call__(self, step: int, loss: Any) -> None:
        import torch

        if step == self.warm:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.start, self.first = time.perf_counter(), step
        self.steps = step
        if step % 500 == 0:
            say(f"step {step}, loss {float(loss):.3f}")

    def rate(self, tokens: int) -> float:
        """Tokens a second since the first steps."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return (self.steps - self.first) * tokens / (time.perf_counter() - self.start)


def tables_weights(model: Any) -> int:
    """Weights that are looked up, not multiplied with: embeddings that no output layer shares."""
    return 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.numel()


def trials(options: argparse.Namespace) -> None:
    """Tokens a second of every trial on the speed test's shape, and the loss after its steps."""
    import torch

    from assyllm.params import load
    from assyllm.zoo.families import family as kind_of
    from assyllm.zoo.load import load_tokenizer
    from assyllm.zoo.pretrain import Recipe, Special, pretrain

    settings = load(PRESET).zoo
    member, shared = member_of("speed", settings), settings.pretrain
    kind, rows = kind_of(member.family), rows_of(member.family, "train", options)
    tokenizer = load_tokenizer(options.keep / "tokens" / member.family)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}
    for label, times in TRIALS.items():
        batch = (options.batch or shared.batch) * times
        steps = options.trial or WARM + 2 * TIMED
        recipe = Recipe(kind.causal, steps, batch, shared.matrix_learning_rate, shared.other_learning_rate,
                        device="cuda" if torch.cuda.is_available() else "cpu", bf16=shared.bf16)  # fmt: skip
        model = kind.build(kind.config(member, tokenizer, shared.max_tokens), 0)
        clock, losses = Clock(min(WARM, steps - 1)), []

        def report(step: int, loss: Any, clock: Clock = clock, losses: list[Any] = losses) -> None:
            clock(step, loss)
            losses.append(loss)

        whole = rows[: len(rows) - len(rows) % recipe.batch]
        pretrain(model, whole, Special.of(tokenizer), recipe, "trials", report=report)
        speed = clock.rate(batch * shared.max_tokens)
        found[label] = {"tokens_per_s": speed, "tokens_a_step": batch * shared.max_tokens, "steps": steps,
                        "tflops": 6 * (model.num_parameters() - tables_weights(model)) * speed / 1e12,
                        "last_losses": [float(loss) for loss in losses[-5:]]}  # fmt: skip
        say(label, json.dumps(found[label]))
        (options.out / "trials.json").write_text(json.dumps(found, indent=1))


def train(name: str, seconds: float | None, options: argparse.Namespace) -> dict[str, Any]:
    """Train one member and write its folder, export and row; ``seconds`` from now, or the preset's steps."""
    import torch

    from assyllm import seeding
    from assyllm.artifacts import output_folder
    from assyllm.params import load
    from assyllm.quantizer.export import export, restore
    from assyllm.zoo.cards import ModelCard, read_card, write_card
    from assyllm.zoo.families import family as kind_of
    from assyllm.zoo.load import load_model, load_tokenizer, weights_sha256
    from assyllm.zoo.pretrain import Recipe, Special, held_out_loss, pretrain

    start = time.perf_counter()
    settings = load(PRESET).zoo
    member, shared = member_of(name, settings), settings.pretrain
    kind, base = kind_of(member.family), member.continued_from
    family_folder = options.keep / "tokens" / member.family
    rows = rows_of(member.family, "train", options)
    held = rows_of(member.family, "valid", options)[: options.held]
    tokenizer = load_tokenizer(family_folder)
    times = len(list((options.keep / "cards").glob(f"{name}_*")))  # it was trained before, so that order differs
    times = max(times, int(options.again))
    names = (options.seed, times, name)

    def fresh() -> Any:
        if base is not None or options.again:
            return load_model(options.keep / "zoo" / (name if options.again else base))
        config = kind.config(member, tokenizer, shared.max_tokens)
        return kind.build(config, seeding.seed_for("init", *names))

    recipe = Recipe(
        causal=kind.causal,
        steps=min(options.trial or WARM + TIMED, member.steps),
        batch=options.batch or shared.batch,
        matrix_learning_rate=shared.matrix_learning_rate,
        other_learning_rate=member.other_learning_rate or shared.other_learning_rate,
        device="cuda" if torch.cuda.is_available() else "cpu",
        bf16=shared.bf16,
    )
    rows = rows[: len(rows) - len(rows) % recipe.batch]  # whole batches only: one shape is compiled
    tokens = recipe.batch * shared.max_tokens
    special = Special.of(tokenizer)
    model = fresh()
    parameters = model.num_parameters()
    multiplying = parameters - tables_weights(model)
    clock = Clock(min(WARM, recipe.steps - 1))
    pretrain(model, rows, special, recipe, "trial", *names, report=clock)
    speed = clock.rate(tokens)
    device = torch.cuda.get_device_name() if recipe.device == "cuda" else "cpu"
    row: dict[str, Any] = {
        "model": name, "family": member.family, "device": device,
        "parameters": parameters, "multiplying_parameters": multiplying, "trial_tokens_per_s": speed,
        "trial_tflops": 6 * multiplying * speed / 1e12, "trial_s": time.perf_counter() - start,
    }  # fmt: skip
    say(f"{name}: {parameters / 1e6:.1f} M weights, {speed / 1e6:.3f} M tokens/s ({row['trial_tflops']:.0f} TFLOP/s)")
    if name == "speed":
        return row
    if seconds is None:
        steps = member.steps
    else:
        left = seconds - (time.perf_counter() - start) - 15  # held-out loss, export
        steps = max(1, int(0.96 * left * speed / tokens))
    recipe, clock, model = replace(recipe, steps=options.steps or steps), Clock(1), fresh()
    say(f"{name}: {recipe.steps} steps")
    pretrain(model, rows, special, recipe, *names, report=clock)
    row |= {"steps": recipe.steps, "tokens": recipe.steps * tokens, "tokens_per_s": clock.rate(tokens)}
    before = read_card(options.keep / "zoo" / name).steps or 0 if options.again else 0
    plain = replace(recipe, bf16=False, batch=min(recipe.batch, 64))
    lost = held_out_loss(model, held, special, plain, *names)
    row |= {"held_out_loss": lost}
    if kind.causal:
        row["bits_per_byte"] = lost / 0.6931471805599453 / text_bytes(options, tokenizer, held)
    folder = options.keep / "zoo" / name
    with output_folder(folder) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        card = ModelCard(
            name=name, family=member.family, stands_for=member.stands_for, source="embedded",
            origin="mix120: Wikipedia, public-domain novels, OpenStax Biology, FairytaleQA",
            licence=member.licence or "as its corpus", parameters=parameters, weights_sha256=weights_sha256(made),
            seed=options.seed, continued_from=base, steps=before + recipe.steps, held_out_loss=round(lost, 4),
        )  # fmt: skip
        write_card(made, card)
    (options.keep / "cards").mkdir(exist_ok=True)
    (options.keep / "cards" / f"{name}_{times}.json").write_text(card.model_dump_json())
    row["export_bytes"] = export(folder, options.keep / "export" / name)
    restore(options.keep / "export" / name, options.keep / "restored" / name)
    again = load_model(options.keep / "restored" / name)
    row["export_held_out_loss"] = held_out_loss(again, held, special, plain, *names)
    row["seconds"] = time.perf_counter() - start
    say(f"{name}: held out {lost:.4f}, from int8 {row['export_held_out_loss']:.4f}, {row['seconds']:.0f} s")
    return row


def lane(models: list[str], seconds: float | None, options: argparse.Namespace) -> None:
    """Train some members one after the other on one device; a row each, as soon as it is known."""
    end = None if seconds is None else time.perf_counter() + seconds
    for i, name in enumerate(models):
        rest = sum(SHARES[other] for other in models[i:] if other in SHARES)
        mine = None
        if end is not None and name in SHARES:
            mine = (end - time.perf_counter()) * SHARES[name] / rest
        row = train(name, mine, options)
        (options.keep / f"row_{name}.json").write_text(json.dumps(row, indent=1))


def parts(options: argparse.Namespace) -> int:
    """The exports as one tar archive cut into parts; returns how many."""
    folder = options.keep / "parts"
    folder.mkdir(exist_ok=True)
    archive = options.keep / "export.tar"
    with tarfile.open(archive, "w") as made:
        made.add(options.keep / "export", arcname="zoo_int8")
    count = 0
    with open(archive, "rb") as handle:
        while piece := handle.read(PART_BYTES):
            (folder / f"export.tar.{count:02d}").write_bytes(piece)
            count += 1
    return count


def main() -> None:
    """Tokenise, train in lanes, gather."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--keep", type=Path, required=True, help="where models and exports stay")
    parser.add_argument("--out", type=Path, required=True, help="where the table and the cards go")
    parser.add_argument("--tokenizers", type=Path, help="ready ones, by family")
    parser.add_argument("--seconds", type=float, help="of the whole command; without it the preset's steps")
    parser.add_argument("--devices", type=int, default=0, help="0: as many as there are, at most 2")
    parser.add_argument("--seed", type=int, default=0, help="of first weights and of the order of rows")
    parser.add_argument("--again", action="store_true", help="go on from the models under --keep")
    parser.add_argument("--batch", type=int, help="rows a step, instead of the preset's")
    parser.add_argument("--steps", type=int, help="of each model, whatever the seconds")
    parser.add_argument("--trial", type=int, help="steps of the trial")
    parser.add_argument("--trials", action="store_true", help="time the speed test's shape and stop")
    parser.add_argument("--held", type=int, help="held-out rows; all of the text if not given")
    parser.add_argument("--only", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    if options.tokens:
        return tokenise(options.tokens, options)
    if options.only:
        return lane(options.only, options.seconds, options)
    import torch

    options.out.mkdir(parents=True, exist_ok=True)
    devices = options.devices or min(2, max(1, torch.cuda.device_count()))
    again = [sys.executable, *sys.argv]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
    if options.trials:
        if not (options.keep / "tokens/llama/train.npy").is_file():
            subprocess.run([*again, "--tokens", "llama"], env=environment, check=True)
        return trials(options)
    ready = {path.parent.name for path in options.keep.glob("tokens/*/train.npy")}
    families = () if options.again else [f for f in ("llama", "opt", "bert", "roberta") if f not in ready]
    writers = [subprocess.Popen([*again, "--tokens", family], env=environment) for family in families]
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    visible = seen if seen[0] else [str(device) for device in range(devices)]
    running = []
    for device, models in enumerate(LANES[devices]):
        todo = ["speed", *models] if device == 0 and not options.again else models
        command = [*again, "--only", *todo]
        if options.seconds:
            command += ["--seconds", str(options.seconds - 25)]
        running.append(subprocess.Popen(command, env=environment | {"CUDA_VISIBLE_DEVICES": visible[device]}))
    failed = [process.wait() for process in [*writers, *running]]
    rows = [json.loads(path.read_text()) for path in sorted(options.keep.glob("row_*.json"))]
    for path in sorted((options.keep / "zoo").glob("*/card.json")):
        (options.out / f"{path.parent.name}_card.json").write_text(path.read_text())
    total = sum(row.get("export_bytes", 0) for row in rows)
    table = {"rows": rows, "export_bytes": total, "seconds": time.perf_counter() - began, "failed": failed,
             "gpu_seconds": sum(row.get("seconds", row["trial_s"]) for row in rows)}  # fmt: skip
    (options.out / "pretrain.json").write_text(json.dumps(table, indent=1))
    say(f"{len(rows)} rows, exports {total / 1e6:.1f} MB in {parts(options)} parts")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
