"""Our zero-shot evaluation beside lm-evaluation-harness: the same model and items, every item's choice compared.

    python benchmarks/lm_eval_agreement.py MODEL QUESTIONS.jsonl ... [--items 200] [--out lm_eval_agreement.csv]

MODEL is a transformers folder of a decoder; QUESTIONS are files of the stage ``tasks`` (``<task>/test.jsonl``). Items
longer than the model's positions are left out: the harness cuts their beginning, we cut the passage's end. Needs
``pip install assyllm[lm-eval]``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from assyllm.results import write_table
from assyllm.tasks.record import Question, read_questions
from assyllm.zoo.encoding import encode
from assyllm.zoo.likelihood import zero_shot
from assyllm.zoo.load import load_model, load_tokenizer


def fitting(tokenizer: Any, questions: list[Question], longest: int) -> list[Question]:
    """The questions that need no shortening."""
    lengths = [int(encode(tokenizer, [q], 1 << 20, slot=False).mask.sum(-1).max()) for q in questions]
    return [q for q, length in zip(questions, lengths, strict=True) if length <= longest]


def harness(model: Any, tokenizer: Any, questions: list[Question], folder: Path) -> dict[str, Any]:
    """lm-eval's choices [N] and accuracies, by ``acc`` and ``acc_norm``."""
    os.environ["HF_DATASETS_CACHE"], os.environ["HF_HUB_OFFLINE"] = str(folder / "cache"), "1"
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    file = folder / "items.jsonl"
    rows = [{"stem": q.stem, "choices": list(q.choices), "answer": q.answer} for q in questions]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    task = ConfigurableTask(config={
        "task": "items", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{stem}}", "doc_to_choice": "choices",
        "doc_to_target": "answer", "metric_list": metrics,
    })  # fmt: skip
    harnessed = HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=True, batch_size=16, device="cpu")
    found = lm_eval.evaluate(harnessed, {"items": task}, log_samples=True, bootstrap_iters=0)
    samples = sorted(found["samples"]["items"], key=lambda sample: sample["doc_id"])
    sums = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    sizes = [[len(choice) for choice in q.choices] for q in questions]
    by_size = [np.array(row) / np.maximum(1, size) for row, size in zip(sums, sizes, strict=True)]
    own = found["results"]["items"]
    return {
        "acc": np.array([int(np.argmax(row)) for row in sums]),
        "acc_norm": np.array([int(np.argmax(row)) for row in by_size]),
        "accuracy": {name: float(own[f"{name},none"]) for name in ("acc", "acc_norm")},
    }


def compare(model: Path, questions: list[Question], folder: Path) -> dict[str, Any]:
    """Both evaluations of one file's items."""
    tokenizer, made = load_tokenizer(model), load_model(model)
    if tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:  # the harness asks the tokenizer for it
        from tokenizers import processors

        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    longest = int(made.config.max_position_embeddings)
    asked = fitting(tokenizer, questions, longest)
    ours, theirs = zero_shot(made, tokenizer, asked, longest), harness(made, tokenizer, asked, folder)
    answers = np.array([q.answer for q in asked])
    row: dict[str, Any] = {"items": len(asked), "left_out": len(questions) - len(asked)}
    for name in ("acc", "acc_norm"):
        row |= {
            f"{name}_equal": int((ours[name] == theirs[name]).sum()),
            f"{name}_ours": float((ours[name] == answers).mean()),
            f"{name}_theirs": theirs["accuracy"][name],
        }
    return row


def main() -> None:
    """A row a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("questions", type=Path, nargs="+")
    parser.add_argument("--items", type=int, help="the first so many of each file")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if importlib.util.find_spec("lm_eval") is None:
        parser.error("lm_eval is not installed: pip install assyllm[lm-eval]")
    rows = []
    for file in options.questions:
        with tempfile.TemporaryDirectory() as name:
            asked = read_questions(file)[: options.items]
            row = compare(options.model, asked, Path(name))
        rows.append({"model": options.model.name, "task": file.parent.name, **row})
        print(rows[-1], flush=True)
    if options.out:
        write_table(options.out, rows)


if __name__ == "__main__":
    main()
