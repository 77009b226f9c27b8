"""Pickled weights (``.bin``) into safetensors, once, shard by shard, in a process of its own.

``torch.load(weights_only=True)`` builds tensors and nothing else; the process has no token and no network
variables, and what it writes is read back and compared. A vocabulary without ``tokenizer.json`` is converted there
too, by transformers' own classes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from assyllm.artifacts import ArtifactError, read_json, sha256_file, write_json

RECORD = "conversion.json"
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "HOME", "LANG", "VIRTUAL_ENV")


def convert(folder: Path, out: Path, weights: Sequence[str], vocabulary: bool) -> None:
    """Convert what ``folder`` has into ``out``, in a separate process.

    Args:
        weights: names of the ``.bin`` shards; ``out`` gets ``model.safetensors``, or as many shards and an index, and
            ``conversion.json`` with the sha256 of every shard before and after.
        vocabulary: write ``tokenizer.json`` from the slow tokenizer's files.

    Raises:
        ArtifactError: a shard is damaged or holds more than tensors, or the vocabulary cannot be converted.
    """
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [
        sys.executable,
        "-m",
        __name__,
        str(folder),
        str(out),
        *weights,
        *(["--vocabulary"] if vocabulary else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the conversion ended with status {done.returncode}"]
        raise ArtifactError(lines[-1].removeprefix("assyllm: "))


def lacking(names: Iterable[str]) -> str:
    """What must be installed to convert a model's vocabulary, "" if nothing; asked before the model is fetched."""
    files = set(names)
    if "tokenizer.model" not in files or "tokenizer.json" in files:
        return ""
    missing = [package for package in ("sentencepiece", "google.protobuf") if not _found(package)]
    return "it has no tokenizer.json, and its tokenizer.model needs `pip install 'assyllm[hub]'`" if missing else ""


def _found(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def _weights(folder: Path, out: Path, names: Sequence[str]) -> None:
    written: dict[str, str] = {}
    record, total = {}, 0
    for number, name in enumerate(names, start=1):
        target = "model.safetensors" if len(names) == 1 else f"model-{number:05}-of-{len(names):05}.safetensors"
        tensors, size = _shard(folder / name, out / target)
        for tensor in tensors:
            if tensor in written:
                raise ArtifactError(f"{folder / name}: {tensor} is in {written[tensor]} too")
            written[tensor] = target
        total += size
        record[name] = {"sha256": sha256_file(folder / name), "to": target, "to_sha256": sha256_file(out / target)}
    index = folder / "pytorch_model.bin.index.json"
    if index.is_file():
        listed = set(read_json(index)["weight_map"])
        if listed != set(written):
            first = sorted(listed ^ set(written))[0]
            raise ArtifactError(f"{index}: {first} is {'listed, but in no shard' if first in listed else 'not listed'}")
    if len(names) > 1:
        write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": written})
    write_json(out / RECORD, record)


def _shard(source: Path, target: Path) -> tuple[list[str], int]:
    """One shard; returns the names of its tensors and their bytes."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    try:
        try:
            state = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before zip files cannot be mapped
            state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        said = " ".join(str(error).split())
        more = "holds more than tensors, and pickled code is never run" if "nsupported" in said else "damaged"
        raise ArtifactError(f"{source}: {more} ({said[:120]})") from None
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ArtifactError(f"{source}: not a mapping of names to tensors")
    seen: set[int] = set()
    for name, tensor in state.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        if shared or not whole or not tensor.is_contiguous():  # safetensors keeps no aliases
            state[name] = tensor.contiguous().clone()
    temporary = target.with_name(f".{target.name}.tmp")
    save_file(state, temporary, metadata={"format": "pt"})
    with safe_open(temporary, framework="pt") as back:
        for name, tensor in state.items():
            again = back.get_tensor(name)
            same = again.dtype == tensor.dtype and again.shape == tensor.shape
            if not same or not torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (again, tensor))):
                raise ArtifactError(f"{source}: {name} reads back differently from {target.name}")
    os.replace(temporary, target)
    return list(state), sum(t.nbytes for t in state.values())


def _vocabulary(folder: Path, out: Path) -> None:
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.save_pretrained(out)
    except Exception as error:
        said = " ".join(str(error).split())
        raise ArtifactError(f"{folder}: no tokenizer.json, and none can be made ({said[:120]})") from None
    if not (out / "tokenizer.json").is_file():
        raise ArtifactError(f"{folder}: no tokenizer.json, and transformers has no fast tokenizer for it")


def _main(arguments: list[str]) -> int:
    vocabulary = "--vocabulary" in arguments
    folder, out, *weights = [a for a in arguments if a != "--vocabulary"]
    try:
        if weights:
            _weights(Path(folder), Path(out), weights)
        if vocabulary:
            _vocabulary(Path(folder), Path(out))
    except (ArtifactError, OSError) as error:
        print(f"assyllm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
