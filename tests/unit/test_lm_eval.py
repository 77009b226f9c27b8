"""Our likelihood evaluation and lm-evaluation-harness choose alike, where that is installed (extra ``lm-eval``)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from assyllm.artifacts import output_folder
from assyllm.tasks import boolq, openbookqa, piqa
from assyllm.tasks.record import Question
from tiny import zoo

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-evaluation-harness (pip install assyllm[lm-eval])"
)
DATA = Path(os.environ.get("ASSYLLM_DATA", ""))


def agrees(model: Path, questions: list[Question], folder: Path) -> None:
    from lm_eval_agreement import compare

    row = compare(model, questions, folder)
    assert row["items"] > len(questions) / 2
    for name in ("acc", "acc_norm"):
        assert row[f"{name}_equal"] == row["items"]
        assert row[f"{name}_ours"] == pytest.approx(row[f"{name}_theirs"])


def test_a_tiny_model_chooses_alike_on_choices_of_unlike_length(tmp_path: Path) -> None:
    tool = zoo.tokenizer("llama")
    with output_folder(tmp_path / "model") as out:
        zoo.model("llama", len(tool), tool.pad_token_id).save_pretrained(out)
        tool.save_pretrained(out)
    questions = [
        Question(f"q{i}", "", f"the colour of {entity} is", ("red", "green and grey", "blue"), i % 3)
        for i, entity in enumerate(zoo.ENTITIES)
    ]
    agrees(tmp_path / "model", questions, tmp_path)


@pytest.mark.skipif(not (DATA / "models/stories260K").is_dir(), reason="needs ASSYLLM_DATA with models/stories260K")
@pytest.mark.parametrize("task", [boolq, piqa, openbookqa], ids=lambda task: task.__name__.split(".")[-1])
def test_a_real_model_chooses_alike_on_real_items(task, tmp_path: Path) -> None:
    file = DATA / task.__name__.split(".")[-1] / "validation.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:40]]
    questions = [task.question(row, str(i)) for i, row in enumerate(rows)]
    agrees(DATA / "models/stories260K", questions, tmp_path)
