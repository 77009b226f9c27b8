"""The model card of an assembled model: README.md of its folder, with the front matter that model hubs read."""

from __future__ import annotations

from typing import Any

import yaml

from assyllm.assembly.recipe import Recipe, unknown_licences

HUB_LICENCES = {
    "CC0-1.0": "cc0-1.0", "MIT": "mit", "BSD-3-Clause": "bsd-3-clause", "Apache-2.0": "apache-2.0",
    "OpenRAIL-M": "openrail", "llama2": "llama2", "llama3": "llama3", "CC-BY-4.0": "cc-by-4.0",
    "CC-BY-SA-4.0": "cc-by-sa-4.0", "CC-BY-NC-4.0": "cc-by-nc-4.0", "CC-BY-NC-SA-4.0": "cc-by-nc-sa-4.0",
}  # fmt: skip


def card(recipe: Recipe) -> str:
    """The card's text, stable for equal recipes."""
    front: dict[str, Any] = {"library_name": "assyllm", "pipeline_tag": "multiple-choice", "tags": ["assyllm"]}
    if recipe.licence in HUB_LICENCES:
        front["license"] = HUB_LICENCES[recipe.licence]
    else:
        front |= {"license": "other", "license_name": recipe.licence}
    models = sorted(recipe.licences)
    lines = ["---", yaml.safe_dump(front, sort_keys=True, allow_unicode=True).strip(), "---", ""]
    lines += [f"# Assembled model for {recipe.task}", ""]
    lines += [
        f"A network of {len(recipe.slices)} blocks taken from {', '.join(models)}, found by forward passes over the",
        f"data of many clients (AssyLLM, USENIX ATC'25) and joined {_joined(recipe)}. It answers",
        "multiple-choice questions.",
        "",
        "```",
        "from assyllm.assembly.assembled import AssembledModel",
        'model = AssembledModel.from_pretrained("this folder")',
        "```",
        "",
        "or `assyllm predict --model FOLDER --questions FILE.jsonl`.",
        "",
        "## Blocks",
        "",
        "| model | stands for | layers | kind | parameters | bits | adapter before it |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in recipe.slices:
        first, last = row["layer_range"]
        name = f"{row['model']}@{row['revision']}" if "revision" in row else row["model"]
        adapter = row["adapter"]["kind"] if "adapter" in row else "none"
        cells = (
            name,
            row["stands_for"],
            f"{first} to {last - 1}",
            row["kind"],
            row["parameters"],
            row["bits"],
            adapter,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "## Licence", "", f"{recipe.licence}: the strictest among its blocks' licences.", ""]
    lines += [f"- {name}: {licence}" for name, licence in sorted(recipe.licences.items())]
    unknown = unknown_licences(recipe.licences.values())
    if unknown:
        lines += ["", f"Not compared with the others, so taken to be the strictest: {', '.join(unknown)}. Read them."]
    lines += ["", "## Provenance", "", f"- params: {recipe.params_sha}", f"- compatibility: {recipe.compatibility}"]
    lines += [f"- {key}: {value}" for key, value in recipe.provenance.items()]
    lines += [
        "",
        "## Limits",
        "",
        f"- Fitted to questions of the form of {recipe.task}; elsewhere its answers mean little.",
        f"- Reads at most {recipe.max_tokens} tokens a question and choice; longer contexts lose their end.",
        "- Its scores rank a question's choices; they are no probabilities.",
        "- It has the faults of the models that its blocks come from.",
    ]
    return "\n".join(lines) + "\n"


def _joined(recipe: Recipe) -> str:
    """How its blocks are joined, in words."""
    kinds = [row["adapter"]["kind"] for row in recipe.slices if row.get("adapter")]
    reading = sum(row["kind"] == "start" for row in recipe.slices)
    trained = kinds.count("cross_attention")
    aside = f"; {reading} of them read the text themselves" if reading > 1 else ""
    if not kinds:
        return f"without adapters, as they stood in their own models{aside}"
    if not trained:
        return f"by adapters in closed form before {len(kinds)} of them{aside}"
    rest = ", the others in closed form" if trained < len(kinds) else ""
    return f"by adapters ({trained} of {len(kinds)} trained on the clients' data{rest}){aside}"
