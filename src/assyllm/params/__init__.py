"""Every knob of the study as typed, frozen models; unknown keys are refused with the nearest known name.

``params.yaml`` is the only place a user edits. A stage receives the sections its rule declares, as JSON, and
can read no other key: :func:`parse_sections` gives exactly those. Nothing here imports torch.
"""

from __future__ import annotations

from assyllm.params.assembling import Adapter, Assembling, Assemblings, Comparator, Federated, Head, Selection
from assyllm.params.baselines import (
    RATES,
    Baselines,
    ClosedForm,
    FedAdapterTuning,
    FrozenBase,
    FwdLLMTuning,
    LoraTuning,
    Tune,
    Tuning,
)
from assyllm.params.devices import Cost, Fleet
from assyllm.params.names import (
    ASSEMBLING,
    BASELINES,
    CONTROLS,
    FROZEN_BASE,
    HEADS,
    LOW_RANK,
    PUBLISHED,
    SHARES,
    TUNED,
    Family,
    Method,
    StandsFor,
    Task,
)
from assyllm.params.pool import Blocks, Quantize, Score, Sensitivity, Swapper, SwapStudy, Width
from assyllm.params.reading import (
    load,
    params_sha,
    parse_sections,
    read_yaml,
    schema,
    sections_json,
    setting_text,
    setting_values,
    with_setting,
)
from assyllm.params.section import Count, Fraction, Name, ParamsError, Part, Positive, Section, Seed, nearest, validate
from assyllm.params.studies import STUDIES, PrecisionStudy, Studies, Study
from assyllm.params.telling import Evaluate, Features, Figures
from assyllm.params.whole import SECTIONS, Params
from assyllm.params.zoo import Member, Partition, Pretrain, Tasks, World, Zoo

__all__ = [
    "ASSEMBLING",
    "BASELINES",
    "CONTROLS",
    "FROZEN_BASE",
    "HEADS",
    "LOW_RANK",
    "PUBLISHED",
    "RATES",
    "SECTIONS",
    "SHARES",
    "STUDIES",
    "TUNED",
    "Adapter",
    "Assembling",
    "Assemblings",
    "Baselines",
    "Blocks",
    "ClosedForm",
    "Comparator",
    "Cost",
    "Count",
    "Evaluate",
    "Family",
    "Features",
    "FedAdapterTuning",
    "Federated",
    "Figures",
    "Fleet",
    "Fraction",
    "FrozenBase",
    "FwdLLMTuning",
    "Head",
    "LoraTuning",
    "Member",
    "Method",
    "Name",
    "Params",
    "ParamsError",
    "Part",
    "Partition",
    "Positive",
    "PrecisionStudy",
    "Pretrain",
    "Quantize",
    "Score",
    "Section",
    "Seed",
    "Selection",
    "Sensitivity",
    "StandsFor",
    "Studies",
    "Study",
    "SwapStudy",
    "Swapper",
    "Task",
    "Tasks",
    "Tune",
    "Tuning",
    "Width",
    "World",
    "Zoo",
    "load",
    "nearest",
    "params_sha",
    "parse_sections",
    "read_yaml",
    "schema",
    "sections_json",
    "setting_text",
    "setting_values",
    "validate",
    "with_setting",
]
