"""Facts of the real tasks that modelled times rest on, held against the tasks themselves."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest

from assyllm.cost.resources import ROWS_PER_CHOICE, TRAIN_ITEMS
from assyllm.zoo.encoding import encode
from assyllm.zoo.forward import pack
from assyllm.zoo.load import load_tokenizer

DATA = Path(os.environ.get("ASSYLLM_DATA", ""))
LLAMA = DATA / "models" / "stories260K"


@pytest.mark.skipif(not LLAMA.is_dir(), reason="needs ASSYLLM_DATA with models/stories260K")
@pytest.mark.parametrize(("task", "max_tokens"), [("boolq", 256), ("piqa", 256), ("openbookqa", 512)])
def test_a_chain_reads_so_many_more_tokens_than_a_whole_decoder(task: str, max_tokens: int) -> None:
    module = importlib.import_module(f"assyllm.tasks.{task}")
    lines = (DATA / task / "train.jsonl").read_text().splitlines()
    assert len(lines) <= TRAIN_ITEMS[task]
    questions = [module.question(json.loads(line), str(i)) for i, line in enumerate(lines[:1500])]
    encoded = encode(load_tokenizer(LLAMA), questions, max_tokens)
    walked = int(encoded.mask[encoded.choice_mask].sum())
    whole = int((pack(encoded, causal=True).segments >= 0).sum())
    assert walked / whole == pytest.approx(ROWS_PER_CHOICE[task], abs=0.02)
