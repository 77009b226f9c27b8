"""The three real tasks: rows to questions, local files, cuts; and owners on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from assyllm import params as P
from assyllm.artifacts import ArtifactError
from assyllm.tasks import boolq, openbookqa, own, piqa, sources
from assyllm.tasks.partition import capped, partition, read_owned, write_owners
from assyllm.tasks.record import Question, read_questions, write_questions

BOOLQ = {"question": "is it red?", "title": "Red", "passage": "Red -- it  is\nred.", "answer": True}
PIQA = {"goal": "How to open a jar", "sol1": "twist it", "sol2": "eat it", "label": 0}
OBQA = {"id": "7-1", "question": "The sun is", "choices": ["a star", "a dog", "ice", "wet"], "answer": 0}
ROWS = {"boolq": BOOLQ, "piqa": PIQA, "openbookqa": OBQA}


def section(**changes: object) -> P.Tasks:
    values: dict = {
        "names": ["boolq", "piqa", "openbookqa"],
        "source": "local",
        "local_dir": "nowhere",
        "max_tokens": {"boolq": 64, "piqa": 64, "openbookqa": 64},
        "train_items": {"boolq": None, "piqa": None, "openbookqa": None},
        "dev_items": 5,
        "test_items": None,
        "unseen_fraction": 0.5,
    }
    return P.Tasks(**{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty training and ten validation rows of each task, found through ASSYLLM_DATA."""
    for task, row in ROWS.items():
        (tmp_path / task).mkdir()
        for split, number in (("train", 40), ("validation", 10)):
            rows = [dict(row, **({"id": f"{split}-{i}"} if task == "openbookqa" else {})) for i in range(number)]
            text = "".join(json.dumps(r) + "\n" for r in rows)
            (tmp_path / task / f"{split}.jsonl").write_text(text)
    monkeypatch.setenv("ASSYLLM_DATA", str(tmp_path))
    return tmp_path


def test_boolq_row() -> None:
    question = boolq.question(BOOLQ, "b1")
    assert question == Question("b1", "Red -- it is red.", "is it red?", ("no", "yes"), 1, "Red")
    untitled = {name: value for name, value in BOOLQ.items() if name != "title"}
    assert boolq.question(untitled, "b1").topic == "Red"


def test_piqa_and_openbookqa_rows() -> None:
    question = piqa.question(PIQA, "p1")
    assert (question.choices, question.answer, question.topic) == (("twist it", "eat it"), 0, "open")
    published = {
        "id": "7-1",
        "question_stem": "The sun is",
        "choices": {"text": OBQA["choices"], "label": list("ABCD")},
        "answerKey": "A",
    }
    assert openbookqa.question(published, "x") == openbookqa.question(OBQA, "x")
    assert openbookqa.question(OBQA, "x").topic == "sun"


@pytest.mark.parametrize(
    ("task", "field", "value"),
    [
        ("boolq", "answer", 1),
        ("boolq", "passage", None),
        ("boolq", "question", " "),
        ("piqa", "label", -1),
        ("piqa", "label", True),
        ("piqa", "sol2", 3),
        ("openbookqa", "choices", ["a", "b"]),
        ("openbookqa", "answer", 4),
        ("openbookqa", "question", None),
    ],
)
def test_a_wrong_field_is_one_line_with_file_and_row(folder: Path, task: str, field: str, value: object) -> None:
    path = folder / task / "train.jsonl"
    lines = path.read_text().splitlines()
    lines[6] = json.dumps({**json.loads(lines[6]), field: value})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ArtifactError) as error:
        sources.load(task, "local", Path("nowhere"))
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{path}, row 7: ")
    assert field in message


OWN = [
    {"question": "which is red ?", "choices": ["rust", "grass"], "answer": 0},
    {"question": "why ?", "context": "a  text", "choices": list("abcde"), "answer": 4, "id": "mine-1", "topic": "whys"},
]


def test_a_task_of_ones_own_has_two_to_five_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASSYLLM_DATA", raising=False)
    (tmp_path / "mine").mkdir()
    # blank lines, and columns that are not ours, do not matter
    text = "\n".join(json.dumps(row | {"rating": rating}) + "\n" for row, rating in zip(OWN, (1, 0.5), strict=True))
    for split in ("train", "validation", "test"):
        (tmp_path / "mine" / f"{split}.jsonl").write_text(text)
    splits = sources.load("mine", "local", tmp_path)
    assert set(splits) == {"train", "validation", "test"}
    first, second = splits["train"]
    assert (len(first.choices), first.topic) == (2, "red")
    assert (second.id, second.context, len(second.choices), second.answer) == ("mine-1", "a text", 5, 4)
    (tmp_path / "mine" / "test.jsonl").write_text("\n" + json.dumps(OWN[1] | {"id": "2020-01-01T00:00:00"}))
    assert sources.load("mine", "local", tmp_path)["test"][0].id == "2020-01-01T00:00:00"
    (tmp_path / "mine" / "test.jsonl").write_text("\n" + json.dumps(OWN[0] | {"answer": 2}))
    with pytest.raises(ArtifactError, match=r"test\.jsonl, row 2: .*answer 2 is not one"):
        sources.load("mine", "local", tmp_path)
    (tmp_path / "mine" / "test.jsonl").unlink()
    assert set(sources.load("mine", "local", tmp_path)) == {"train", "validation"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"choices": ["a"]}, "1 choices, expected 2 to 5"),
        ({"choices": list("abcdef")}, "6 choices, expected 2 to 5"),
        ({"choices": "ab"}, "choices is str, before list of str"),
        ({"choices": [1, 2]}, "choices is list of int, before list of str"),
        ({"answer": 2}, "answer 2 is not one of its choices"),
        ({"answer": "a"}, "answer is str, before int"),
        ({"answer": 1.0}, "answer is float, before int"),
        ({"answer": float("nan")}, "answer is float, before int"),
        ({"question": " "}, "question must be a text"),
    ],
)
def test_a_wrong_row_of_ones_own_task_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, words: str
) -> None:
    monkeypatch.delenv("ASSYLLM_DATA", raising=False)
    (tmp_path / "mine").mkdir()
    rows = [OWN[0], OWN[0] | change]
    for split in ("train", "validation"):
        (tmp_path / "mine" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ArtifactError, match=rf"mine.train\.jsonl, row 2: .*{words}"):
        sources.load("mine", "local", tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "train.jsonl: no rows"),
        (b"\n \n", "train.jsonl: no rows"),
        ("é".encode("latin-1"), "line 1: not UTF-8"),
        (b"[]\n", "row 1: an object"),
    ],
)
def test_a_file_that_is_no_task_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    monkeypatch.delenv("ASSYLLM_DATA", raising=False)
    (tmp_path / "mine").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "mine" / f"{split}.jsonl").write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        sources.load("mine", "local", tmp_path)


def test_the_hub_and_the_world_have_only_published_tasks() -> None:
    raw = P.read_yaml(Path(__file__).parents[2] / "params.yaml")["tasks"]
    for names, words in ((["piqq"], "did you mean 'piqa'"), (["mine"], "others need source: local")):
        changed = raw | {"names": names, "max_tokens": {names[0]: 8}, "train_items": {names[0]: None}}
        with pytest.raises(P.ParamsError, match=words):
            P.validate(P.Tasks, changed)
        P.validate(P.Tasks, changed | {"source": "local"})


def test_broken_json_names_the_row(folder: Path) -> None:
    path = folder / "piqa" / "train.jsonl"
    path.write_text(path.read_text() + "{not json\n")
    with pytest.raises(ArtifactError, match="row 41: not valid JSON"):
        sources.load("piqa", "local", Path("nowhere"))


def test_missing_files_say_where_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASSYLLM_DATA", raising=False)
    with pytest.raises(ArtifactError, match=r"boolq.train\.jsonl: missing.*google/boolq.*ASSYLLM_DATA"):
        sources.load("boolq", "local", tmp_path)


def test_reading_leaves_no_cache_behind(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    before = {path for path in tmp_path.rglob("*")}
    assert len(sources.load("piqa", "local", folder)["train"]) == 40
    assert {path for path in tmp_path.rglob("*")} == before
    assert capfd.readouterr() == ("", "")


def test_cut_is_disjoint_deterministic_and_capped(folder: Path) -> None:
    for task in ROWS:
        published = sources.load(task, "local", folder)
        cut = sources.cut(task, published, section(train_items={**dict.fromkeys(ROWS, 20)}, test_items=7))
        assert [len(cut[split]) for split in ("train", "dev", "test")] == [20, 5, 7]
        ids = [q.id for split in cut.values() for q in split]
        assert len(set(ids)) == len(ids)
        again = sources.cut(task, published, section(train_items={**dict.fromkeys(ROWS, 20)}, test_items=7))
        assert cut == again


def test_openbookqa_carves_test_items_from_train_only_without_a_test_file(folder: Path) -> None:
    published = sources.load("openbookqa", "local", folder)
    cut = sources.cut("openbookqa", published, section())
    assert [len(cut[split]) for split in ("train", "dev", "test")] == [31, 5, 14]
    published["test"] = published["validation"][:3]
    assert len(sources.cut("openbookqa", published, section())["test"]) == 3


def test_too_many_dev_items_are_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tasks\.dev_items: 40 of 40"):
        sources.cut("piqa", sources.load("piqa", "local", folder), section(dev_items=40))


def test_questions_survive_the_disk_whatever_separators_they_hold(tmp_path: Path) -> None:
    asked = [Question(f"q{i}", "a\u2028b", "c\x85d", ("x", "y"), 0) for i in range(2)]
    write_questions(tmp_path / "q.jsonl", asked)
    assert read_questions(tmp_path / "q.jsonl") == asked


def test_public_texts_hold_every_choice_without_the_answer() -> None:
    texts = sources.public_texts([piqa.question(PIQA, "p"), openbookqa.question(OBQA, "o")])
    assert texts[:2] == ["How to open a jar twist it", "The sun is a star"]
    assert len(texts) == 6


def test_owners_survive_the_disk_and_misfits_are_refused(tmp_path: Path) -> None:
    questions = [Question(f"q{i}", "", "?", ("a", "b"), i % 2) for i in range(30)]
    owners = partition(questions, "piqa", 7, 1.0, "label", 0)
    write_owners(tmp_path / "piqa.csv", questions, owners)
    owned = read_owned(tmp_path / "piqa.csv", questions, 7)
    assert [list(np.flatnonzero(owners == client)) for client in range(7)] == owned
    with pytest.raises(ArtifactError, match="deal again"):
        read_owned(tmp_path / "piqa.csv", questions[:-1], 7)
    with pytest.raises(ArtifactError, match="deal again"):
        read_owned(tmp_path / "piqa.csv", questions, 3)


def test_a_cap_on_items_survives_the_disk(tmp_path: Path) -> None:
    questions = [Question(f"q{i}", "", "?", ("a", "b"), i % 2) for i in range(30)]
    owners = partition(questions, "piqa", 7, 1.0, "label", 0)
    write_owners(tmp_path / "piqa.csv", questions, capped(owners, 2, "piqa", 0))
    owned = read_owned(tmp_path / "piqa.csv", questions, 7, 2)
    whole = [set(np.flatnonzero(owners == client)) for client in range(7)]
    assert [len(items) for items in owned] == [min(2, len(items)) for items in whole]
    assert all(set(items) <= all_ for items, all_ in zip(owned, whole, strict=True))
    with pytest.raises(ArtifactError, match="of 30 items are dealt; deal again"):
        read_owned(tmp_path / "piqa.csv", questions, 7)
    with pytest.raises(ArtifactError, match="holds more than 1 items; deal again"):
        read_owned(tmp_path / "piqa.csv", questions, 7, 1)


REAL = os.environ.get("ASSYLLM_DATA", "")


@pytest.mark.skipif(not (Path(REAL) / "boolq" / "train.jsonl").is_file(), reason="ASSYLLM_DATA holds no BoolQ")
def test_real_files_load_and_cut() -> None:
    sizes = {}
    for task in ("boolq", "piqa", "openbookqa"):
        cut = sources.cut(task, sources.load(task, "local", Path("nowhere")), section(dev_items=300))
        sizes[task] = len(cut["test"])
        assert len({q.topic for q in cut["train"]}) > 50
        assert all(q.topic for q in cut["train"][:50])
    assert sizes["openbookqa"] > 900
    assert min(sizes.values()) > 500


def test_a_row_that_lacks_a_field_says_which() -> None:
    with pytest.raises(ValueError, match="answer is missing; there are question, choices, anser"):
        own.question({"question": "a", "choices": ["b", "c"], "anser": 0}, "1")


def test_more_clients_than_questions_are_refused(tiny_folder, tmp_path) -> None:
    from assyllm.stages import partition as stage
    from conftest import tiny_params

    number = len(read_questions(tiny_folder / "tasks" / "boolq" / "train.jsonl"))
    p = tiny_params(partition={"clients": number + 1})
    with pytest.raises(ArtifactError, match=f"partition.clients: {number + 1}, but boolq has {number} training quest"):
        stage.run(P.sections_json(p, stage.SECTIONS), "code", tiny_folder / "tasks", 0, tmp_path / "partition")
    assert not (tmp_path / "partition").exists()
