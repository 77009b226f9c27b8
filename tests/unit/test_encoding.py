"""Text to tensors, pooling, packing and likelihoods, on tiny random models of all four families."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from assyllm.artifacts import ArtifactError
from assyllm.tasks.record import Question
from assyllm.zoo.encoding import encode, features, pool
from assyllm.zoo.forward import inputs, pack, pooled
from assyllm.zoo.likelihood import option_likelihoods, zero_shot
from tiny import zoo as tiny

FAMILIES = ("llama", "opt", "bert", "roberta")
UNEVEN = [
    Question("a", "ent1 is red", "is ent1 found in the forest ?", ("yes", "no"), 0),
    Question("b", "", "ent2 lives near the", ("harbour", "forest", "market tower", "tower"), 2),
    Question("c", "", "the colour of ent3 is", ("red", "red and blue", "red"), 1),
]


torch.set_num_threads(1)


def squeezed(words: str) -> str:
    return "".join(words.split())


def text(tool, ids: list[int]) -> str:
    """What tokens stand for, without spaces, special tokens and the marks of word starts and pieces."""
    kept = [token for token in tool.convert_ids_to_tokens(ids) if token not in tool.all_special_tokens]
    return "".join(token.removeprefix("##").strip("\u2581\u0120") for token in kept)


@cache
def tokenizer(family: str):
    return tiny.tokenizer(family)


@cache
def model(family: str):
    made = tiny.model(family, len(tokenizer(family)), tokenizer(family).pad_token_id)
    made.set_attn_implementation("eager")
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_read_stem_then_choice(family: str) -> None:
    tool = tokenizer(family)
    encoded = encode(tool, UNEVEN, 64)
    assert encoded.ids.shape[:2] == (3, 4)
    assert encoded.choice_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert encoded.answer.tolist() == [0, 2, 1]
    assert encoded.cut == 0
    for n, question in enumerate(UNEVEN):
        for c, choice in enumerate(question.choices):
            row = encoded.ids[n, c][encoded.mask[n, c]].tolist()
            assert text(tool, row) == squeezed(f"{question.stem} {choice}")
            assert text(tool, encoded.ids[n, c][encoded.chosen[n, c]].tolist()) == squeezed(choice)
            assert row[0] == (tool.cls_token_id if tool.cls_token_id is not None else tool.bos_token_id)
            assert row.count(tool.mask_token_id) == (tool.mask_token_id is not None)
    assert (encoded.mask.int().diff(dim=-1) <= 0).all()  # padding stands on the right


@pytest.mark.parametrize("family", FAMILIES)
def test_pooling_averages_the_choice_and_multiplies_it_with_the_slot(family: str) -> None:
    encoded = encode(tokenizer(family), UNEVEN, 64)
    states = torch.randn(*encoded.ids.shape, 6)
    got = pool(states, encoded)
    assert got.shape == (3, 4, features(6))
    assert torch.equal(got, pool(states.flatten(0, 1), encoded))
    for n, question in enumerate(UNEVEN):
        for c in range(len(question.choices)):
            where = encoded.chosen[n, c].nonzero()[:, 0]
            choice = states[n, c, where].mean(0)
            slot = states[n, c, where[0] - 1]
            torch.testing.assert_close(got[n, c], torch.cat([choice, slot * choice]))
            if family in ("bert", "roberta"):
                assert encoded.ids[n, c, where[0] - 1] == tokenizer(family).mask_token_id
    assert (got[0, 2:] == 0).all()  # padding choices


@pytest.mark.parametrize("family", FAMILIES)
def test_over_long_text_loses_context_never_question_or_choice(family: str) -> None:
    tool = tokenizer(family)
    long = Question("l", "red " * 200, "is ent1 found in the forest ?", ("yes", "no market"), 0)
    encoded = encode(tool, [long], 40)
    assert encoded.ids.shape[-1] == 40
    assert encoded.cut == 0
    for c, choice in enumerate(long.choices):
        read = text(tool, encoded.ids[0, c][encoded.mask[0, c]].tolist())
        assert read.endswith(squeezed(f"{long.question} {choice}"))
        assert read.startswith("redred")


def test_a_question_that_does_not_fit_is_cut_and_counted() -> None:
    tool = tokenizer("llama")
    long = Question("l", "red", "green " * 80, ("yes", "no market"), 0)
    encoded = encode(tool, [long, UNEVEN[0]], 30)
    assert encoded.cut == 1
    assert int(encoded.mask[0].sum(-1).max()) == 30
    assert text(tool, encoded.ids[0, 1][encoded.chosen[0, 1]].tolist()) == "nomarket"
    with pytest.raises(ArtifactError, match="no room"):
        encode(tool, UNEVEN, 2)


def test_empty_choices_and_slices() -> None:
    encoded = encode(tokenizer("llama"), [Question("e", "", "ent1 is", ("", "red"), 1), *UNEVEN], 64)
    assert encoded.chosen[0, 0].sum() == 1
    assert torch.isfinite(encoded.pools).all()
    part = encoded[[0]]
    assert len(part) == 1
    assert part.ids.shape[-1] == int(encoded.mask[0].sum(-1).max())
    assert torch.equal(part.ids[0], encoded.ids[0, :, : part.ids.shape[-1]])
    assert len(encode(tokenizer("llama"), [], 64)) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_own_masks_and_positions_give_the_models_own_states(family: str) -> None:
    encoded = encode(tokenizer(family), UNEVEN, 64)
    base = model(family).base_model
    real = encoded.choice_mask.flatten()
    ids, mask = encoded.ids.flatten(0, 1)[real], encoded.mask.flatten(0, 1)[real]
    with torch.no_grad():
        theirs = base(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        ours = base(**inputs(base.config, pack(encoded, causal=False))).last_hidden_state[real]
    torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_shared_stems_give_the_states_of_separate_rows(family: str) -> None:
    encoded = encode(tokenizer(family), UNEVEN, 64)
    packed, rows = pack(encoded, causal=True), pack(encoded, causal=False)
    assert packed.ids.shape[1] == 1
    assert (packed.segments >= 0).sum() < encoded.mask.sum()
    base = model(family).base_model
    with torch.no_grad():
        one, many = pooled(base, None, packed), pooled(base, None, rows)
        states = base(**inputs(base.config, rows)).last_hidden_state
    torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(many, pool(states, encoded), atol=1e-6, rtol=1e-5)
    taken = packed.take(torch.tensor([2, 0]))
    with torch.no_grad():
        torch.testing.assert_close(pooled(base, None, taken), one[[2, 0]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_decoder_likelihood_is_the_sum_over_the_choice(family: str) -> None:
    tool, made = tokenizer(family), model(family)
    got = option_likelihoods(made, tool, UNEVEN, 64)
    assert got.shape == (3, 4)
    assert torch.isneginf(got[0, 2:]).all()
    for n, question in enumerate(UNEVEN):
        stem = [tool.bos_token_id, *tool(question.stem, add_special_tokens=False)["input_ids"]]
        for c, choice in enumerate(question.choices):
            ids = [tool.bos_token_id, *tool(f"{question.stem} {choice}", add_special_tokens=False)["input_ids"]]
            with torch.no_grad():
                scores = made(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            expected = sum(float(scores[t - 1, ids[t]]) for t in range(len(stem), len(ids)))
            assert float(got[n, c]) == pytest.approx(expected, abs=1e-4)


def test_encoder_likelihood_masks_the_choice() -> None:
    tool, made = tokenizer("bert"), model("bert")
    got = option_likelihoods(made, tool, UNEVEN[:1], 64)
    ids = [tool.cls_token_id, *tool(f"{UNEVEN[0].stem} yes", add_special_tokens=False)["input_ids"]]
    length = len(tool("yes", add_special_tokens=False)["input_ids"])
    hidden = ids[:-length] + [tool.mask_token_id] * length + [tool.sep_token_id]
    with torch.no_grad():
        scores = made(input_ids=torch.tensor([hidden])).logits[0].double().log_softmax(-1)
    expected = sum(float(scores[t, ids[t]]) for t in range(len(ids) - length, len(ids)))
    assert float(got[0, 0]) == pytest.approx(expected, abs=1e-4)


def test_acc_norm_divides_by_the_choices_characters() -> None:
    tool, made = tokenizer("llama"), model("llama")
    raw = option_likelihoods(made, tool, UNEVEN, 64).numpy()
    chosen = zero_shot(made, tool, UNEVEN, 64)
    assert chosen["acc"].tolist() == raw.argmax(-1).tolist()
    for n, question in enumerate(UNEVEN):
        norm = [raw[n, c] / len(choice) for c, choice in enumerate(question.choices)]
        assert chosen["acc_norm"][n] == int(np.argmax(norm))
