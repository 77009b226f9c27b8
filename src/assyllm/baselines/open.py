"""A zoo member for the baselines: a transformers folder as a whole model with eager attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from assyllm.artifacts import MANIFEST, ArtifactError, verify_folder
from assyllm.zoo.forward import ENCODERS


def open_model(folder: Path) -> tuple[nn.Module, Any]:
    """The model with its language head (float32, evaluation mode) and its fast tokenizer.

    Eager attention, because it is plain tensor code that vectorises over clients.

    Raises:
        ArtifactError: the folder lacks a file, or differs from its manifest.
    """
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoTokenizer,
    )
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        verify_folder(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = AutoModelForMaskedLM if config.model_type in ENCODERS else AutoModelForCausalLM
        model = kind.from_pretrained(
            folder,
            config=config,
            attn_implementation="eager",
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: not a transformers model ({' '.join(str(error).split())})") from None
    return model.eval(), tokenizer
