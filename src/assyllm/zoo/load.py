"""Models and tokenizers from transformers folders.

Weights are safetensors only and no code comes with a model. Every defect is one line that names the file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assyllm.artifacts import ArtifactError, read_json, sha256_file, sha256_text
from assyllm.zoo.architecture import ARCHITECTURES
from assyllm.zoo.header import Entry, header

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a transformers folder, one or several shards, all present and whole.

    Of a folder that has both, the single file, as transformers reads it.

    Raises:
        ArtifactError: no weights, a shard missing, or a file shorter than its header says.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (folder / INDEX).is_file():
        listed = read_json(folder / INDEX)
        shards = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise ArtifactError(f"{folder / INDEX}: no weight_map in it")
        names = sorted(set(shards.values()))
    else:
        other = next((p.name for p in sorted(folder.glob("*.bin"))), None)
        hint = f" ({other} is there, but only safetensors are read)" if other else ""
        raise ArtifactError(f"{folder / WEIGHTS}: no such file{hint}")
    files = [folder / name for name in names]
    for file in files:
        if not file.is_file():
            raise ArtifactError(f"{file}: no such file, but {INDEX} lists it")
        header(file)
    return files


def stored_tensors(folder: Path) -> dict[str, Entry]:
    """The tensors of a transformers folder by name, whichever file they stand in (errors as :func:`weight_files`)."""
    return {name: entry for file in weight_files(folder) for name, entry in header(file).items()}


def weights_sha256(folder: Path) -> str:
    """One sha256 for a folder's weights: the file's own, or that of all shards' hashes."""
    digests = [sha256_file(file) for file in weight_files(folder)]
    return digests[0] if len(digests) == 1 else sha256_text("".join(digests))


def no_bars_in_logs() -> None:
    """Keep transformers' progress bars to terminals."""
    import transformers

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def load_config(folder: Path) -> Any:
    """A folder's transformers configuration.

    Raises:
        ArtifactError: no config.json, or a family that this project does not know.
    """
    import transformers

    path = Path(folder) / "config.json"
    kind = read_json(path).get("model_type")
    if kind not in ARCHITECTURES:
        raise ArtifactError(f"{path}: model_type {kind!r} is not one of {', '.join(ARCHITECTURES)}")
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ArtifactError(f"{path}: transformers cannot read it ({first_line(error)})") from None


def positions(config: Any) -> int:
    """The longest row that a model reads (RoBERTa's and its descendants' positions begin after the padding id)."""
    longest = getattr(config, "max_position_embeddings", None) or 2**31
    padding = getattr(config, "pad_token_id", None)
    return longest - ((1 if padding is None else padding) + 1 if config.model_type in AFTER_PADDING else 0)


def check_length(config: Any, name: str, max_tokens: Mapping[str, int]) -> None:
    """Whether a model reads rows as long as every task's.

    Raises:
        ArtifactError: naming the first task whose rows are longer.
    """
    for task, tokens in max_tokens.items():
        if tokens > (most := positions(config)):
            raise ArtifactError(f"tasks.max_tokens.{task}: {tokens} is more than the {most} positions of {name}")


def load_model(folder: Path, dtype: Any = None, headless: bool = False) -> Any:
    """A folder's language model, on the CPU, in evaluation mode, with eager attention.

    Args:
        dtype: torch dtype of the weights; None for float32.
        headless: its language head is not needed, and may be missing in the files.

    Raises:
        ArtifactError: a file is missing or damaged, or weights that the model needs are not in it or of another shape.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    no_bars_in_logs()
    config = load_config(folder)
    weight_files(folder)
    transformers.utils.logging.disable_progress_bar()
    cls = ARCHITECTURES[config.model_type].model_class
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # what is missing is told below, in a line
    try:
        model, found = cls.from_pretrained(
            folder,
            config=config,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # transformers' own refusal does not say which
        )
    except SafetensorError as error:
        raise ArtifactError(f"{folder}: its safetensors are damaged ({first_line(error)})") from None
    except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        raise ArtifactError(f"{folder}: transformers makes no model of its config.json ({first_line(error)})") from None
    finally:
        transformers.utils.logging.set_verbosity(level)
    for name, there, expected in sorted(found["mismatched_keys"]):
        raise ArtifactError(f"{folder}: {name} is {list(there)}, its config.json says {list(expected)}")
    inside = f"{model.base_model_prefix}."
    missing = sorted(name for name in found["missing_keys"] if not headless or name.startswith(inside))
    if missing:
        head = "" if any(name.startswith(inside) for name in missing) else "; a model with its language head is needed"
        raise ArtifactError(f"{folder}: no weights for {missing[0]} ({len(missing)} missing in all){head}")
    return model.eval()


def load_tokenizer(folder: Path, named: bool = False) -> Any:
    """A folder's fast tokenizer.

    A padding token that was added to it without a row in the model's table is left out: padding is masked, so another
    id does as well.

    Args:
        named: whether its own files say which class it is, so that the model's config (of an assembled model, which
            transformers does not know) is not asked.

    Raises:
        ArtifactError: no tokenizer.json, or it cannot be read.
    """
    import transformers

    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file (a fast tokenizer is needed)")
    try:
        more = {"config": transformers.PretrainedConfig()} if named else {}
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **more
        )
    except Exception as error:
        raise ArtifactError(f"{path}: not readable as a tokenizer ({first_line(error)})") from None
    config = Path(folder) / "config.json"
    rows = read_json(config).get("vocab_size") if config.is_file() and not named else None
    if rows is not None and tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = None
    return tokenizer


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
