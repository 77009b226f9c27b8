"""Files are whole or absent, and an altered one is noticed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from assyllm import artifacts as A


def test_folder_appears_whole_with_a_manifest_that_is_checked(tmp_path: Path) -> None:
    out = tmp_path / "pool"
    with A.output_folder(out, unlisted=("timings.csv",)) as folder:
        A.write_text(folder / "a" / "x.txt", "one")
        A.write_text(folder / "timings.csv", "1.23")
        assert not out.exists()
    assert set(A.verify_folder(out)) == {"a/x.txt"}
    assert [p.name for p in tmp_path.iterdir()] == ["pool"]


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    pool = tmp_path / "pools" / "one"
    for out in (pool, pool.parent, tmp_path / "x" / ".." / "pools"):
        with pytest.raises(A.ArtifactError, match="which it is made from; nothing is written"):
            A.check_apart(out, tmp_path / "recipe.yaml", pool)
    A.check_apart(tmp_path / "pools" / "two", pool)


def test_a_failed_body_leaves_the_old_output_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "pool"
    with A.output_folder(out) as folder:
        A.write_text(folder / "x.txt", "one")
    before = (out / A.MANIFEST).read_bytes()

    def fail_halfway() -> None:
        with A.output_folder(out) as folder:
            A.write_text(folder / "x.txt", "two")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert (out / A.MANIFEST).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["pool"]


def test_what_a_killed_job_left_is_removed_and_what_another_still_writes_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from assyllm.artifacts import output_folder\n"
        "with output_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').touch(); print(folder, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        half = Path(other.stdout.readline().strip())
        for outlived in (True, False):
            with A.output_folder(tmp_path / "out") as folder:
                (folder / "whole").write_text(str(outlived))
            assert half.exists() is outlived
            assert [p.name for p in tmp_path.iterdir() if p != half] == ["out"]
            other.kill()
            other.wait()


def test_where_folders_cannot_be_locked_leftovers_go_after_a_day(tmp_path: Path, monkeypatch) -> None:
    def flock(mark: int, how: int) -> None:
        raise OSError(errno.EBADF, "no locks here")

    monkeypatch.setattr(A.fcntl, "flock", flock)
    old, young = (tmp_path / f".out.{digit * 32}.tmp" for digit in "01")
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (1, 1))
    with A.output_folder(tmp_path / "out") as folder:
        (folder / "whole").touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == [young.name, "out"]


def test_equal_output_is_left_alone_and_other_output_replaced(tmp_path: Path) -> None:
    out = tmp_path / "pool"

    def make(content: str) -> int:
        with A.output_folder(out) as folder:
            A.write_text(folder / "x.txt", content)
        return out.stat().st_ino

    first = make("one")
    assert make("one") == first
    assert make("two") != first
    assert (out / "x.txt").read_text() == "two"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.unlink(), "missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes, 4 expected"),
        (lambda p: p.write_bytes(b"onf!"), "sha256"),
    ],
)
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, damage, words: str) -> None:
    out = tmp_path / "pool"
    with A.output_folder(out) as folder:
        A.write_text(folder / "x.txt", "one!")
    damage(out / "x.txt")
    with pytest.raises(A.ArtifactError, match=words) as caught:
        A.verify_folder(out)
    assert "x.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_others_made_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("hi")
    with pytest.raises(A.ArtifactError, match="not made by assyllm"), A.output_folder(tmp_path / "mine"):
        pytest.fail("nothing may be computed")
    with pytest.raises(A.ArtifactError, match="not made by assyllm"), A.output_folder(tmp_path / "mine/thesis.txt"):
        pytest.fail("nothing may be computed")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "hi"
    for path in (tmp_path, Path("."), Path("/dev/null"), tmp_path / "mine" / "thesis.txt" / "x"):
        with pytest.raises(A.ArtifactError, match="nothing is written"):
            A.write_text(path, "x")
    assert not Path("/dev/null").is_file()
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_a_folder_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    with A.output_folder(tmp_path / "out", like="pool.json") as folder:
        A.write_text(folder / "pool.json", "a pool")
    with (
        pytest.raises(A.ArtifactError, match=r"something else \(no recipe\.yaml in it\); nothing is written"),
        A.output_folder(tmp_path / "out", like="recipe.yaml"),
    ):
        pass
    with A.output_folder(tmp_path / "out", like="pool.json") as folder:
        A.write_text(folder / "pool.json", "another")
    assert (tmp_path / "out" / "pool.json").read_text() == "another"


def test_json_is_stable_and_broken_json_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    A.write_json(path, {"b": 1, "a": [2]})
    assert json.loads(path.read_text()) == {"a": [2], "b": 1}
    path.write_text("{")
    with pytest.raises(A.ArtifactError, match=r"a\.json: not valid JSON"):
        A.read_json(path)
    with pytest.raises(A.ArtifactError, match="No such file"):
        A.read_json(tmp_path / "b.json")


@pytest.mark.parametrize("files", [{}, {"a": 5}, {"a": {"bytes": 1}}, []])
def test_a_manifest_that_says_nothing_of_its_files_verifies_nothing(files: object, tmp_path: Path) -> None:
    A.write_json(tmp_path / A.MANIFEST, {"files": files})
    with pytest.raises(A.ArtifactError, match="not a manifest"):
        A.verify_folder(tmp_path)


FULL = """
import resource, shutil, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from assyllm import artifacts as A
from assyllm.zoo.weights import write
out, source = Path(sys.argv[1]), Path(sys.argv[2])
source.mkdir()
(source / "large").write_bytes(bytes(20_000))
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))  # as a disk that is full: no file grows beyond
numbers = torch.zeros(4_000)
ways = {
    "save_file": lambda made: save_file({"x": numbers}, made / "x.safetensors"),
    "write": lambda made: write(made / "x.safetensors", {"x": (numbers.dtype, (4_000,))}, lambda name: numbers),
    "copytree": lambda made: shutil.copytree(source, made / "copy"),
    "bytes": lambda made: A.write_bytes(made / "x.csv", bytes(20_000)),
}
for name, way in ways.items():
    try:
        with A.output_folder(out / name) as made:
            way(made)
    except A.ArtifactError as error:
        print(error)
try:
    A.write_files({out / "small": b"new", out / "large": bytes(20_000)})
except A.ArtifactError as error:
    print(error)
"""


def test_where_there_is_no_room_one_line_names_what_is_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "small").write_bytes(b"old")
    asked = [sys.executable, "-c", FULL, str(out), str(tmp_path / "source")]
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    no_room = f": {os.strerror(errno.EFBIG)}; nothing is written"
    assert lines[:3] == [f"{out / name}{no_room}" for name in ("save_file", "write", "copytree")]
    assert lines[3] == f"{out / 'bytes' / 'x.csv'}{no_room}"
    assert lines[4] == f"{out / 'large'}{no_room}"
    assert [path.name for path in out.iterdir()] == ["small"]
    assert (out / "small").read_bytes() == b"old"
