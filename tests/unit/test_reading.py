"""Two models' tokens of one text, and the adapter that reads the text again."""

from __future__ import annotations

import pytest
import torch

from assyllm.adapter import fixed_attention
from assyllm.adapter.cross_attention import CrossAttentionAdapter, bridge
from assyllm.adapter.linear import LinearAdapter, LinearSums
from assyllm.adapter.reading import Join, alignment, readings, visible
from assyllm.adapter.registry import build, describe
from assyllm.zoo.encoding import encode
from tiny import zoo

QUESTIONS = zoo.questions("openbookqa", "test", 7) + zoo.questions("boolq", "test", 4)


def spans(*pairs: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(pairs)[None]


def test_tokens_meet_where_they_share_characters() -> None:
    old = spans((0, 0), (0, 4), (5, 9), (9, 12))  # BOS, three tokens
    new = spans((0, 0), (0, 2), (2, 4), (4, 12), (12, 12))  # CLS, half, half, two at once, SEP
    weights = alignment(old, torch.ones(1, 4, dtype=torch.bool), new)[0]
    expected = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 1.0]])
    torch.testing.assert_close(weights, expected)
    short = alignment(old, torch.tensor([[True, True, False, False]]), new)[0]
    assert short[:, 2:].sum() == 0  # never a padding token
    torch.testing.assert_close(short.sum(-1), torch.ones(5))


def test_before_a_causal_block_nothing_later_is_seen() -> None:
    old, new = spans((0, 0), (0, 4), (5, 9)), spans((0, 0), (0, 2), (2, 6), (7, 9))
    mask = torch.tensor([[True, True, True, False]])
    assert visible(old, new, mask, causal=False)[0].tolist() == [[True, True, True, False]] * 3
    assert visible(old, new, mask, causal=True)[0].tolist() == [
        [True, False, False, False], [True, True, True, False], [True, True, True, False],
    ]  # fmt: skip
    touching, slot = spans((0, 0), (0, 4), (4, 4), (4, 9)), spans((0, 0), (0, 4), (4, 4), (4, 9))
    real = torch.ones(1, 4, dtype=torch.bool)
    assert visible(touching, slot, real, causal=True)[0].tolist() == [
        [True, False, False, False], [True, True, True, False], [True, True, True, False], [True] * 4,
    ]  # fmt: skip


def test_spans_name_the_characters_of_every_token(tiny_pool) -> None:
    for model in tiny_pool.models:
        tokenizer = tiny_pool.tokenizer(model)
        encoded = encode(tokenizer, QUESTIONS, 48)
        for n, question in enumerate(QUESTIONS):
            for c, choice in enumerate(question.choices):
                text = f"{question.stem} {choice}"
                row = encoded.spans[n, c][encoded.mask[n, c]]
                assert int(row.max()) <= len(text)
                assert (row[:, 0].diff() >= 0).all()
                chosen = encoded.spans[n, c][encoded.chosen[n, c]]
                assert text[int(chosen[0, 0]) : int(chosen[-1, 1])].strip() == choice


def test_a_model_reads_a_text_as_its_own_blocks_do(tiny_pool) -> None:
    found = readings(tiny_pool, lambda model: encode(tiny_pool.tokenizer(model), QUESTIONS, 48))
    for model in tiny_pool.models:
        block = tiny_pool.block(tiny_pool.of_model(model)[0].id)
        for chunk, embedded in zip(found.rows(model).chunks, found.embedded(model), strict=True):
            torch.testing.assert_close(block.trace(chunk.ids, chunk.mask)[-1].shape[:2], embedded.shape[:2])
    first = [chunk.index for chunk in found.rows("llama").chunks]
    for model in tiny_pool.models:  # the same rows in every chunk, whatever the tokens
        assert all(torch.equal(a, c.index) for a, c in zip(first, found.rows(model).chunks, strict=True))


def join(causal: bool) -> tuple[Join, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(5, 9, 6, generator=generator)
    mask = torch.ones(5, 9, dtype=torch.bool)
    mask[2, 6:] = False
    align = torch.softmax(torch.randn(5, 9, 7, generator=generator), -1)
    return Join(embedded, mask, align, mask[:, None].expand(-1, 7, -1), causal), torch.randn(
        5, 7, 4, generator=generator
    )


def test_patterns_before_a_causal_block_look_only_back() -> None:
    one, _ = join(causal=True)
    changed = Join(one.embedded.clone(), one.mask, one.align, one.visible, True)
    changed.embedded[:, 5:] = 9.0
    same = fixed_attention.patterns(one)[:, :5], fixed_attention.patterns(changed)[:, :5]
    torch.testing.assert_close(*same)
    assert fixed_attention.patterns(one).shape == (5, 9, 18)
    assert fixed_attention.patterns(join(causal=False)[0]).shape == (5, 9, 24)


def test_the_fit_recovers_a_map_that_is_there() -> None:
    seen, states = join(causal=False)
    generator = torch.Generator().manual_seed(1)
    true = torch.randn(24, 3, generator=generator), torch.randn(4, 3, generator=generator)
    x, arriving = fixed_attention.patterns(seen), seen.arriving(states)
    y = x @ true[0] + arriving @ true[1] + 0.5
    block = fixed_attention.fit_rereading(LinearSums.of(x[seen.mask], y[seen.mask]), 1e-6)
    left = y - block(seen)
    adapter = fixed_attention.fit(block, LinearSums.of(arriving[seen.mask], left[seen.mask]), 1e-6, rank=3)
    before = (y - block(seen))[seen.mask].square().mean()
    after = (y - adapter(states, seen))[seen.mask].square().mean()
    assert after < before
    poorer = fixed_attention.fit(block, LinearSums.of(arriving[seen.mask], left[seen.mask]), 1e-6, rank=1)
    assert after <= (y - poorer(states, seen))[seen.mask].square().mean() < before
    again = build(describe(adapter), adapter.state_dict())
    torch.testing.assert_close(again(states, seen), adapter(states, seen))
    assert adapter.sent_bytes < adapter.bytes


@pytest.mark.parametrize(
    ("heads", "key_heads", "first"),
    [
        (8, 1, [1.0]),
        (8, 4, [1, 0, 0, 0.0]),
        (4, 8, [0.5, 0.5, 0, 0, 0, 0, 0, 0]),
        (6, 8, [0.75, 0.25, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_heads_are_bridged(heads, key_heads, first) -> None:
    weights = bridge(heads, key_heads)
    torch.testing.assert_close(weights[0], torch.tensor(first))
    torch.testing.assert_close(weights.sum(-1), torch.ones(heads))
    torch.testing.assert_close(weights.sum(0), torch.full((key_heads,), heads / key_heads))  # all are read alike
    torch.testing.assert_close(weights, weights.flip(0, 1))


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 1), (4, 2), (3, 2), (2, 3)])
def test_cross_attention_begins_as_the_projection_and_learns(heads, key_heads) -> None:
    seen, states = join(causal=False)
    generator = torch.Generator().manual_seed(2)
    projection = LinearAdapter(torch.randn(4, 5, generator=generator), torch.randn(5, generator=generator))
    adapter = CrossAttentionAdapter.start(projection, 6, heads, key_heads, "a>b")
    torch.testing.assert_close(adapter(states, seen), projection(states))
    # a target that only the other model's tokens tell, and not by position
    target = projection(states) + torch.tanh(seen.embedded[:, :1, :5])
    optimizer = torch.optim.Adam(adapter.parameters(), 0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (adapter(states, seen) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    again = build(describe(adapter), adapter.state_dict())
    torch.testing.assert_close(again(states, seen), adapter(states, seen))


def test_cross_attention_sees_no_padding_and_before_a_causal_block_nothing_later() -> None:
    seen, states = join(causal=False)
    adapter = CrossAttentionAdapter.start(LinearAdapter(torch.zeros(4, 5), torch.zeros(5)), 6, 2, 2, "a>b")
    adapter.out.data = torch.randn(adapter.out.shape, generator=torch.Generator().manual_seed(3))
    changed = Join(seen.embedded.clone(), seen.mask, seen.align, seen.visible, False)
    changed.embedded[2, 6:] = 9.0  # padding
    torch.testing.assert_close(adapter(states, seen), adapter(states, changed))
    only_first = torch.zeros_like(seen.visible)
    only_first[..., 0] = True
    blind = adapter(states, Join(seen.embedded, seen.mask, seen.align, only_first, True))
    changed.embedded[:, 1:] = 9.0
    torch.testing.assert_close(adapter(states, Join(changed.embedded, seen.mask, seen.align, only_first, True)), blind)
