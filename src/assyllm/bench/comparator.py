"""``assyllm bench comparator``: CKA of all block pairs at once against one pair after another.

The other side is the usual loop (as in torch_cka): for every pair and minibatch the second block's Gram matrix is
made and HSIC_1 taken of the pair and of that block. It is a kind reading of that loop: the first block's Gram
matrices are given to it, and traces of products are taken elementwise (torch_cka multiplies the matrices). It is
timed on a seeded sample of pairs and counted up, because whole it takes minutes; both sides see the same states,
minibatches and single thread.

Ratios: ``per_pair_over_ours_d768`` (64 blocks) and ``_d4096`` (32 blocks) on 1,024 rows as one minibatch,
``_batch32`` the same in the paper's minibatches of 32; ``abs_error_quarter``: the largest error at rows = d / 4
on states whose CKA is known; ``bf16_error``: the largest difference that bfloat16 makes over all pairs;
``difference_to_per_pair``: the largest difference between the two sides' CKA.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from assyllm import seeding
from assyllm.bench.record import Record
from assyllm.comparator.cka import all_pairs, minibatches, pair_terms
from assyllm.comparator.cka import cka as one_cka

ROWS = 1024
SIZES = ((64, 768), (32, 4096))  # blocks, width
SAMPLE = {ROWS: 8, 32: 96}  # pairs that the loop is timed on, by rows of a minibatch
KNOWN = (0.0, 0.2, 0.5, 0.9)  # CKA of states made for it


def run(rounds: int = 2) -> Record:
    """Every ratio once a round, on other data each round."""
    torch.set_num_threads(1)
    return Record.of("comparator", [one_round(number) for number in range(rounds)])


def one_round(number: int) -> dict[str, float]:
    """All ratios of one round."""
    found, differences = {}, []
    for blocks, width in SIZES:
        states = related_states(blocks, width, number)
        for batch, suffix in ((ROWS, ""), (32, "_batch32")):
            ratio, difference = speed(states, batch, number)
            found[f"per_pair_over_ours_d{width}{suffix}"] = ratio
            differences.append(difference)
        if width == SIZES[0][1]:
            found["bf16_error"] = bf16_error(states)
    found["abs_error_quarter"] = max(known_error(cka, 4 * ROWS, number) for cka in KNOWN)
    return found | {"difference_to_per_pair": max(differences)}


def normal(*shape: int, name: str, seed: int) -> Tensor:
    """Seeded standard normal numbers."""
    generator = torch.Generator().manual_seed(seeding.seed_for("bench comparator", name, seed))
    return torch.randn(*shape, generator=generator)


def related_states(blocks: int, width: int, seed: int) -> list[Tensor]:
    """States ``[ROWS, width]`` as blocks of one network give them: shared signal, decaying spectrum, an offset."""
    signal = normal(ROWS, 64, name="signal", seed=seed)
    spectrum = torch.arange(1, width + 1) ** -0.5
    out = []
    for block in range(blocks):
        mixed = signal @ normal(64, width, name=f"mix/{block}", seed=seed) / 8
        own = normal(ROWS, width, name=f"own/{block}", seed=seed)
        share = (block + 1) / blocks
        out.append((share * mixed + (1 - share) * own) * spectrum + normal(width, name=f"at/{block}", seed=seed))
    return out


def speed(states: Sequence[Tensor], batch: int, seed: int) -> tuple[float, float]:
    """How many times longer the loop takes for all pairs, and the largest difference on the timed ones."""
    draw = seeding.rng("bench comparator pairs", batch, seed)
    pairs = [tuple(int(i) for i in draw.integers(len(states), size=2)) for _ in range(SAMPLE[batch])]
    began = time.perf_counter()
    table = all_pairs(states, batch)
    ours = time.perf_counter() - began
    loop, difference = 0.0, 0.0
    for first, second in pairs:
        given = [gram(states[first][part]) for part in minibatches(ROWS, batch)]
        self_terms = sum(len(k) * hsic(k, k) for k in given)
        began = time.perf_counter()
        terms = per_pair(given, states[second], batch)
        loop += time.perf_counter() - began
        cka = terms[0] / (self_terms * terms[1]) ** 0.5
        difference = max(difference, abs(cka - float(pair_terms(table, first, second).cka())))
    return loop / len(pairs) * len(states) ** 2 / ours, difference


def per_pair(given: Sequence[Tensor], second: Tensor, batch: int) -> tuple[float, float]:
    """The loop's work for one pair: HSIC_1 of both blocks and of the second with itself, over minibatches."""
    both, own = 0.0, 0.0
    for k, part in zip(given, minibatches(ROWS, batch), strict=True):
        l = gram(second[part])
        both += len(k) * hsic(k, l)
        own += len(k) * hsic(l, l)
    return both, own


def gram(states: Tensor) -> Tensor:
    """Gram matrix ``[n, n]`` with a zero diagonal, of centred states (uncentred float32 loses the signal)."""
    states = states - states.mean(0)
    return (states @ states.T).fill_diagonal_(0.0)


def hsic(k: Tensor, l: Tensor) -> float:
    """HSIC_1 of two Gram matrices with zero diagonals (Song 2012, equation 5)."""
    n = len(k)
    sums = float(k.sum() * l.sum()) / ((n - 1) * (n - 2))
    return (float((k * l).sum()) + sums - 2 / (n - 2) * float(k.sum(0) @ l.sum(1))) / (n * (n - 3))


def known_error(cka: float, width: int, seed: int) -> float:
    """|estimate - truth| at rows = width / 4, on normal states whose CKA is ``cka``.

    Y = sqrt(c) X + sqrt(1 - c) Z with X, Z independent and isotropic has cov(X, Y) = sqrt(c) I, so its linear
    CKA is c. Isotropic states are the hardest: a decaying spectrum has fewer effective columns.
    """
    x = normal(width // 4, width, name=f"x/{cka}", seed=seed)
    z = normal(width // 4, width, name=f"z/{cka}", seed=seed)
    estimate = one_cka(x, cka**0.5 * x + (1 - cka) ** 0.5 * z)
    return abs((estimate if estimate is not None else float("inf")) - cka)


def bf16_error(states: Sequence[Tensor]) -> float:
    """Largest |CKA in bfloat16 - CKA in float32| over all pairs, in minibatches of 32."""
    exact, rounded = all_pairs(states, 32), all_pairs(states, 32, bf16=True)
    pairs = [(i, j) for i in range(len(states)) for j in range(i)]
    return max(abs(float(pair_terms(exact, i, j).cka()) - float(pair_terms(rounded, i, j).cka())) for i, j in pairs)
