"""A tiny zoo and tiny tasks for tests: five random models of the four families, written in about a second.

The models know nothing; they have unlike widths, depths, heads, norms, positions and tokenizers (llama and
vicuna share one), so that everything that joins, scores or trains blocks can be tried on them.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch

from assyllm.artifacts import output_folder, sha256_file, write_text
from assyllm.seeding import rng, seed_for
from assyllm.tasks.record import Question, write_questions
from assyllm.zoo.cards import ModelCard, write_card

FAMILY = {"llama": "llama", "vicuna": "llama", "opt": "opt", "bert": "bert", "roberta": "roberta"}
STANDS_FOR = {
    "llama": "llama-7b",
    "vicuna": "vicuna-7b",
    "opt": "opt-6.7b",
    "bert": "bert-base",
    "roberta": "roberta-large",
}
LICENCE = {name: "Apache-2.0" for name in FAMILY}
ENTITIES = [f"ent{i}" for i in range(12)]
COLOURS = ["red", "green", "blue", "grey"]
PLACES = ["harbour", "forest", "market", "tower"]
POSITIONS = 64


def sentences() -> list[str]:
    """The tiny language: every text of the tiny tasks is made of these."""
    lines = []
    for i, entity in enumerate(ENTITIES):
        lines.append(f"the colour of {entity} is {COLOURS[i % 4]} and it lives near the {PLACES[i // 4 % 4]}")
        lines.append(f"is {entity} found in the {PLACES[(i + 1) % 4]} ? yes or no")
    return lines


def tokenizer(kind: str) -> Any:
    """A small tokenizer of a family's own sort, trained on :func:`sentences`: the same one every time."""
    from assyllm.zoo import families, tokenizers

    size = {"llama": 120, "opt": 320, "bert": 150, "roberta": 300}[kind]
    return tokenizers.train(families.family(kind), sentences(), size, POSITIONS)


def config(name: str, vocabulary: int, pad: int) -> Any:
    """transformers' config of a tiny zoo member: unlike widths, depths and heads."""
    from transformers import BertConfig, LlamaConfig, OPTConfig, RobertaConfig

    if FAMILY[name] == "llama":
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=POSITIONS,
            pad_token_id=pad,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
        )
    if FAMILY[name] == "opt":
        return OPTConfig(
            vocab_size=vocabulary,
            hidden_size=40,
            word_embed_proj_dim=40,
            ffn_dim=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            dropout=0.0,
            pad_token_id=pad,
            bos_token_id=2,
            eos_token_id=2,
        )
    encoder = {
        "vocab_size": vocabulary,
        "num_attention_heads": 4,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": pad,
    }
    if FAMILY[name] == "bert":
        return BertConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=3,
            max_position_embeddings=POSITIONS,
            **encoder,
        )
    return RobertaConfig(
        hidden_size=28,
        intermediate_size=56,
        num_hidden_layers=4,
        max_position_embeddings=POSITIONS + 2,
        type_vocab_size=1,
        bos_token_id=0,
        eos_token_id=2,
        **encoder,
    )


def model(name: str, vocabulary: int, pad: int, seed: int = 0) -> Any:
    """A tiny random language model in eval mode; every weight, biases and norms too, is random."""
    from transformers import BertForMaskedLM, LlamaForCausalLM, OPTForCausalLM, RobertaForMaskedLM

    cls: Any = {
        "llama": LlamaForCausalLM,
        "opt": OPTForCausalLM,
        "bert": BertForMaskedLM,
        "roberta": RobertaForMaskedLM,
    }[FAMILY[name]]
    made = cls(config(name, vocabulary, pad))
    generator = torch.Generator().manual_seed(seed_for("tiny", name, seed))
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.dim() == 1 else 0.15 * noise)
    return made.eval()


def write_zoo(folder: Path, names: tuple[str, ...] = tuple(FAMILY), seed: int = 0) -> Path:
    """Write ``<folder>/<name>/`` for every member: weights, config, tokenizer, card, manifest."""
    tokenizers = {kind: tokenizer(kind) for kind in {FAMILY[name] for name in names}}
    for name in names:
        tool = tokenizers[FAMILY[name]]
        made = model(name, len(tool), tool.pad_token_id, seed)
        with output_folder(folder / name) as out:
            made.save_pretrained(out, safe_serialization=True)
            tool.save_pretrained(out)
            card = ModelCard(
                name=name,
                family=FAMILY[name],
                stands_for=STANDS_FOR[name],
                source="embedded",
                origin="random weights",
                licence=LICENCE[name],
                parameters=sum(p.numel() for p in made.parameters()),
                weights_sha256=sha256_file(out / "model.safetensors"),
                seed=seed,
            )
            write_card(out, card)
    return folder


def questions(task: str, split: str, number: int) -> list[Question]:
    """Tiny questions of one task's form; one fact each, the answer follows from the entity."""
    draws = rng("tiny tasks", task, split)
    out = []
    for n in range(number):
        who = int(draws.integers(len(ENTITIES)))
        entity = ENTITIES[who]
        if task == "boolq":
            asked = int(draws.integers(4))
            stem, choices = f"is {entity} found in the {PLACES[asked]} ?", ("yes", "no")
            answer, topic = int(who % 4 != asked), PLACES[asked]
        elif task == "piqa":
            order = [who % 4, (who + 1 + int(draws.integers(3))) % 4]
            answer = int(draws.integers(2))
            choices = tuple(COLOURS[i] for i in (order if answer == 0 else order[::-1]))
            stem, topic = f"the colour of {entity} is", "colour"
        else:
            shuffled = [int(i) for i in draws.permutation(4)]
            choices = tuple(PLACES[i] for i in shuffled)
            stem, answer, topic = f"{entity} lives near the", shuffled.index(who % 4), "place"
        context = f"{entity} is {COLOURS[who % 4]}" if task == "boolq" else ""
        out.append(Question(f"{task}-{split}-{n}", context, stem, choices, answer, topic, (f"{task}/{entity}",)))
    return out


def write_tasks(
    folder: Path,
    names: tuple[str, ...] = ("boolq", "piqa", "openbookqa"),
    train: int = 60,
    dev: int = 24,
    test: int = 30,
) -> Path:
    """Write ``<folder>/<task>/{train,dev,test}.jsonl`` and ``public.txt`` with a manifest."""
    with output_folder(folder) as out:
        for task in names:
            for split, number in (("train", train), ("dev", dev), ("test", test)):
                write_questions(out / task / f"{split}.jsonl", questions(task, split, number))
            write_text(out / task / "public.txt", "".join(line + "\n" for line in sentences()))
    return folder


def write_partition(
    folder: Path, names: tuple[str, ...] = ("boolq", "piqa", "openbookqa"), train: int = 60, clients: int = 12
) -> Path:
    """Write ``<folder>/<task>.csv`` (client, question): the training questions dealt unevenly."""
    with output_folder(folder) as out:
        for task in names:
            draws = rng("tiny partition", task)
            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerow(["client", "question"])
            owners = sorted(int(draws.integers(clients)) for _ in range(train))
            for n, client in enumerate(owners):
                writer.writerow([client, f"{task}-train-{n}"])
            write_text(out / f"{task}.csv", buffer.getvalue())
    return folder
