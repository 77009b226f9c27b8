"""Packed layers compute what their integers say; bytes quoted are on disk; budgets are kept; bad input is one line."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from assyllm import params as P
from assyllm.artifacts import ArtifactError, manifest_sha, output_folder, read_json
from assyllm.blocks.pool import Pool
from assyllm.cost.pool_sizes import sensitivity_bytes
from assyllm.cost.shapes import Shape
from assyllm.quantizer import allocate
from assyllm.quantizer.backends import Int8Linear, Nf4Linear, encode
from assyllm.quantizer.calibrate import batches, linears, native_inputs, public_lines
from assyllm.quantizer.compensate import compensated
from assyllm.quantizer.error import pool_errors
from assyllm.quantizer.packed import PackedLinear, kernel
from assyllm.quantizer.planes import PLANES, Layout, nearest, pack, restore
from assyllm.quantizer.pool import open_pool, quantize_pool
from assyllm.quantizer.scores import scores
from assyllm.quantizer.sensitivity import write_sensitivity
from assyllm.quantizer.sizes import WIDTHS, matrix_bytes
from assyllm.zoo.header import header
from conftest import tiny_params
from tiny import zoo

UNIFORM = {"scheme": "uniform", "rounding": "nearest"}


def packed_linear(linear: nn.Linear, widths: torch.Tensor, group_size: int) -> PackedLinear:
    weight = linear.weight.detach()
    found, counts = widths.unique(return_counts=True)
    counts = dict(zip(found.tolist(), counts.tolist(), strict=True))
    layer = PackedLinear(counts, linear.in_features, group_size, linear.bias is not None)
    tensors = pack(*nearest(weight, widths, group_size), weight, widths)
    layer.load_state_dict(tensors | ({"bias": linear.bias.detach().half()} if linear.bias is not None else {}))
    return layer


@pytest.fixture(scope="module")
def sensitivity(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensitivity") / "all"
    lines = public_lines(tiny_folder / "tasks", ["boolq"], 12)
    settings = tiny_params(
        sensitivity={"scores": ["sparsity", "noise", "masking", "output", "correlation"], "probes": 4}
    ).sensitivity
    write_sensitivity(tiny_folder / "pool", folder, lines, 32, settings)
    return folder


def test_what_is_measured_has_the_bytes_that_are_planned(tiny_folder, sensitivity) -> None:
    for name in zoo.FAMILY:
        shape = Shape.of(read_json(tiny_folder / "zoo" / name / "config.json"))
        kept = [header(file) for file in sorted((sensitivity / "blocks").glob(f"{name}*"))]
        stored = sum(entry.bytes for entries in kept for entry in entries.values())
        assert stored == shape.layers * sensitivity_bytes(shape, 5, moments=True), name


def quantized(tiny_folder, folder, sensitivity=None, **changes) -> Pool:
    quantize_pool(tiny_folder / "pool", folder, tiny_params(quantize=changes).quantize, sensitivity)
    return open_pool(folder)


@pytest.mark.parametrize("columns", [37, 48, 56, 64, 72])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_gradient_are_those_of_the_matrix_that_the_planes_stand_for(columns, bias) -> None:
    torch.manual_seed(columns)
    linear = nn.Linear(columns, 23, bias=bias)
    widths = torch.tensor(WIDTHS, dtype=torch.uint8)[torch.randint(len(WIDTHS), (23,))]
    layer = packed_linear(linear, widths, 16)
    weight = linear.weight.detach()
    expected_weight = restore(*nearest(weight, widths, 16), weight, widths, 16)
    torch.testing.assert_close(layer.dense(), expected_weight, rtol=0, atol=0)
    x = torch.randn(3, 5, columns, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    expected = nn.functional.linear(y, expected_weight, None if not bias else layer.bias.float())
    got = layer(x)
    torch.testing.assert_close(got, expected)
    (got**2).sum().backward()
    (expected**2).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    layer.eval()
    with torch.no_grad():
        layer(x)
    assert torch.autograd.grad(layer(x).sum(), x)[0] is not None  # an eval forward leaves gradients alive


def test_no_tile_is_the_whole_matrix(monkeypatch) -> None:
    monkeypatch.setattr("assyllm.quantizer.packed.TILE_WEIGHTS", {"cpu": 320})
    linear = nn.Linear(64, 50, bias=False)
    layer = packed_linear(linear, torch.randint(2, 9, (50,)).to(torch.uint8), 32)
    held = []
    plain = PackedLinear.weight_rows
    monkeypatch.setattr(PackedLinear, "weight_rows", lambda *a: held.append(plain(*a)) or held[-1])
    x = torch.randn(4, 64, requires_grad=True)
    layer(x).sum().backward()
    assert max(part.numel() for part in held) <= 320
    torch.testing.assert_close(x.grad, layer.dense().sum(0).expand(4, -1))


@pytest.mark.parametrize("tile", [1 << 20, 640])
def test_a_layer_that_keeps_its_matrix_computes_the_same_bits(monkeypatch, tile) -> None:
    """Kept only where the matrix is one tile: 64 x 50 weights are five tiles of 640."""
    monkeypatch.setattr("assyllm.quantizer.packed.TILE_WEIGHTS", {"cpu": tile})
    torch.manual_seed(0)
    widths = torch.tensor(WIDTHS, dtype=torch.uint8)[torch.randint(len(WIDTHS), (50,))]
    layer = packed_linear(nn.Linear(64, 50), widths, 32)
    x = torch.randn(7, 64, requires_grad=True)

    def results() -> tuple[torch.Tensor, torch.Tensor]:
        out = layer(x)
        return out, torch.autograd.grad(out.square().sum(), x)[0]

    plain, calls = results(), []
    monkeypatch.setattr(type(layer), "keeps", True)
    unpack = type(layer).weight_rows
    monkeypatch.setattr(type(layer), "weight_rows", lambda *a: calls.append(1) or unpack(*a))
    before = set(layer.state_dict())
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(plain, results(), strict=True))
    assert len(calls) == (1 if tile == 1 << 20 else 3 * 2 * 5)
    assert set(layer.state_dict()) == before


def test_only_small_pools_keep_their_float_matrices(tiny_folder, tmp_path, monkeypatch) -> None:
    quantized(tiny_folder, tmp_path / "pool", scheme="uniform", bits=4, rounding="nearest")
    asked = tiny_params().quantize.changed(scheme="uniform", bits=4, group_size=32)
    assert asked.mean_bits == 4.5  # what memory is modelled with: a 16-bit scale a group
    assert asked.changed(bits=16).mean_bits == 16

    def keeping(**options) -> set[bool]:
        pool = open_pool(tmp_path / "pool", **options)
        return {m.keeps for b in pool.ids for m in pool.block(b).modules() if isinstance(m, PackedLinear)}

    assert keeping() == {False}
    assert keeping(keep=True) == {True}
    monkeypatch.setattr("assyllm.quantizer.pool.KEPT_BYTES", 1000)
    assert keeping(keep=True) == {False}


@pytest.mark.parametrize(("backend", "kind", "limit"), [("nf4", Nf4Linear, 0.12), ("llm_int8", Int8Linear, 0.02)])
def test_bitsandbytes_back_ends_compute_and_pass_gradients_in_eval_mode(backend, kind, limit) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(24, 72), torch.randn(24)
    layer = kind(72, 24, bias=True).eval()
    layer.load_state_dict(encode(weight, backend) | {"bias": bias.half()})
    x = torch.randn(4, 6, 72, requires_grad=True)
    expected = nn.functional.linear(x.detach(), weight, bias)
    with torch.no_grad():
        layer(x)
    got = layer(x)
    assert float((got - expected).detach().norm() / expected.norm()) < limit
    got.sum().backward()
    assert float((x.grad[0, 0] - weight.sum(0)).norm() / weight.sum(0).norm()) < limit


@pytest.mark.parametrize("rows", [(48, 48), (48, 192), (288, 72), (224, 56)])
def test_nf4_is_decoded_whatever_its_rows_are(rows) -> None:
    """bitsandbytes' CPU kernel is wrong on some of these shapes when told of them."""
    torch.manual_seed(0)
    columns, out = rows
    weight = torch.randn(out, columns)
    layer = Nf4Linear(columns, out, bias=False)
    layer.load_state_dict(encode(weight, "nf4"), strict=False)
    assert float((layer.dense(torch.float32) - weight).norm() / weight.norm()) < 0.11


@pytest.mark.parametrize(
    ("changes", "share", "error"),
    [
        (UNIFORM | {"bits": 16, "embedding_bits": 16}, 0.51, 0.01),
        (UNIFORM | {"bits": 8}, 0.34, 0.05),
        (UNIFORM | {"bits": 4}, 0.25, 0.6),
        ({"scheme": "nf4"}, 0.25, 0.6),
        ({"scheme": "llm_int8"}, 0.34, 0.1),
        ({"scheme": "mixed", "budget_bits": 7.5}, 0.235, 0.3),
        ({"scheme": "mixed", "budget_bits": 7.5, "rounding": "nearest", "score": "masking"}, 0.235, 0.4),
        ({"scheme": "layerwise", "budget_bits": 7.5, "widths": [4, 8], "rounding": "nearest"}, 0.235, 0.6),
        ({"scheme": "paper", "budget_bits": 7.5, "rounding": "nearest"}, 0.235, 0.6),
    ],
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else None,
)  # fmt: skip
def test_quantized_pool_counts_every_byte_and_runs(
    changes, share, error, tiny_folder, tiny_pool, sensitivity, tmp_path
) -> None:
    pool = quantized(tiny_folder, tmp_path / "low", sensitivity, **changes)
    for block in pool.ids:
        stored = pool.tensors(block)
        assert pool.info(block).bytes == sum(t.nbytes for t in stored.values())
        held = pool.block(block).state_dict()  # in memory: what transformers' own modules hold widens to float32
        widened = [name for name in stored if held[name].dtype != stored[name].dtype]
        assert all(stored[name].dtype == torch.float16 and held[name].dtype == torch.float32 for name in widened)
        assert sum(t.nbytes for t in held.values()) - pool.info(block).bytes == sum(stored[n].nbytes for n in widened)
        assert changes.get("bits") == 16 or sum(stored[n].nbytes for n in widened) < 0.4 * pool.info(block).bytes
        assert pool.info(block).parameters == tiny_pool.info(block).parameters
        assert torch.float32 not in {t.dtype for n, t in stored.items() if "absmax" not in n}
    assert pool.bytes < share * tiny_pool.bytes
    if "budget_bits" in changes:
        weights = sum(pool.info(block).parameters for block in pool.ids)
        assert changes["budget_bits"] - 0.6 < 8 * pool.bytes / weights <= changes["budget_bits"]
    lines = public_lines(tiny_folder / "tasks", ["boolq"], 6)
    found = pool_errors(tiny_pool, pool, lines, 32)
    assert {tiny_pool.info(block).family for block in found} == {"llama", "opt", "bert", "roberta"}
    assert 0 < max(found.values()) < error


def test_a_packed_table_still_serves_the_tied_head(tiny_folder, tiny_pool, tmp_path) -> None:
    pool = quantized(tiny_folder, tmp_path / "low", **UNIFORM, bits=8)
    assert any("embed_tokens.widths" in name for name in pool.tensors(pool.of_model("opt")[0].id))
    for model in ("opt", "bert"):
        pairs = zip(pool.lm_head(model).parameters(), tiny_pool.lm_head(model).parameters(), strict=True)
        for low, exact in pairs:
            torch.testing.assert_close(low, exact, rtol=0.02, atol=0.01)


def test_output_score_agrees_with_replacing_each_row(tiny_folder, tiny_pool) -> None:
    lines = public_lines(tiny_folder / "tasks", ["boolq"], 8)
    for model in ("llama", "bert"):
        info, block, received = next(iter(native_inputs(tiny_pool, model, batches(tiny_pool, model, lines, 32))))
        found = scores(block, received, ["output", "replaced"], 16, 24, 0)
        ours = torch.cat([found["output"][path] for path in found["output"]])
        literal = torch.cat([found["replaced"][path] for path in found["output"]])
        ranks = torch.stack([ours.argsort().argsort(), literal.argsort().argsort()]).double()
        assert float(torch.corrcoef(ranks)[0, 1]) > 0.9, info.id
        assert 0.5 < float(ours.sum() / literal.sum()) < 2
        tiny_pool.forget(info.id)


def test_scores_leave_the_block_as_it_was(tiny_folder, tiny_pool) -> None:
    lines = public_lines(tiny_folder / "tasks", ["boolq"], 4)
    info, block, received = next(iter(native_inputs(tiny_pool, "opt", batches(tiny_pool, "opt", lines, 32))))
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    names = ["sparsity", "noise", "masking", "output", "correlation", "replaced"]
    found = scores(block, received, names, 16, 1, 0)
    assert set(found) == set(names)
    for rows in found.values():
        assert all(torch.isfinite(r).all() and (r >= 0).all() for r in rows.values())
        assert {path: len(r) for path, r in rows.items()} == {p: m.out_features for p, m in linears(block).items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert not any(m._forward_hooks for m in block.modules())
    tiny_pool.forget(info.id)


def test_compensated_rounding_lowers_the_layers_output_error() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 16) @ torch.randn(16, 72) + 0.2 * torch.randn(400, 72)
    weight = torch.randn(40, 72)
    widths = torch.tensor([3, 4, 6, 8, 16], dtype=torch.uint8).repeat(8)
    plain = restore(*nearest(weight, widths, 32), weight, widths, 32)
    whole, scales = compensated(weight, widths, 32, x.T @ x)
    better = restore(whole, scales, weight, widths, 32)
    error = [float((x @ (w - weight).T).norm()) for w in (plain, better)]
    assert error[1] < 0.7 * error[0]
    assert torch.equal(better[widths == 16], weight[widths == 16].half().float())
    pack(whole, scales, weight, widths)


def test_compensated_rounding_is_the_same_whatever_the_stretch(monkeypatch) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(200, 50), torch.randn(6, 50)
    widths = torch.full((6,), 4, dtype=torch.uint8)
    results = []
    for columns in (7, 50, 128):
        monkeypatch.setattr("assyllm.quantizer.compensate.COLUMNS", columns)
        whole, scales = compensated(weight, widths, 16, x.T @ x)
        results.append(restore(whole, scales, weight, widths, 16))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(results[1], results[2])


def test_measured_error_falls_with_the_budget_and_below_whole_layers(
    tiny_folder, tiny_pool, sensitivity, tmp_path
) -> None:
    lines = public_lines(tiny_folder / "tasks", ["boolq"], 12)
    errors = []
    for budget in (6.5, 7.0, 7.5, 8.0):
        pool = quantized(tiny_folder, tmp_path / f"{budget}", sensitivity, budget_bits=budget, rounding="nearest")
        errors.append(sum(e**2 for e in pool_errors(tiny_pool, pool, lines, 32).values()) ** 0.5)
    assert all(more <= 1.01 * less for less, more in pairwise(errors))
    layers = quantized(
        tiny_folder,
        tmp_path / "layers",
        sensitivity,
        scheme="layerwise",
        widths=[4, 8],
        budget_bits=8.0,
        rounding="nearest",
    )
    by_layer = sum(e**2 for e in pool_errors(tiny_pool, layers, lines, 32).values()) ** 0.5
    assert errors[-1] < by_layer


def test_the_papers_rule_gives_int8_to_what_passes_both_thresholds() -> None:
    rows = {"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.tensor([5.0, 6, 7, 8])}
    scores = {"sparsity": rows, "masking": rows, "correlation": {"a": rows["a"] + 10, "b": rows["b"]}}
    columns = {"a": 64, "b": 64}
    floor = matrix_bytes({4: 8}, 64, 32)
    found = allocate.two_thresholds(scores, columns, 32, floor + 3 * 32, 0.0, 0.3)
    assert found["a"].tolist() == [4, 4, 4, 8]  # only this row of a passes; it has the highest correlation
    assert found["b"].tolist() == [4, 4, 8, 8]
    with pytest.raises(ArtifactError, match="below"):
        allocate.two_thresholds(scores, columns, 32, floor - 1, 0.0, 0.3)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [1e-7, 1e-6, 1e-5, 1e-4, 1.0])
def test_small_weights_are_rounded_and_not_lost(bits, size) -> None:
    """fp16 has no number below 6e-8, so scales of small groups are rounded up: no weight moves by more than that."""
    weight = size * torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    widths = torch.full((6,), bits, dtype=torch.uint8)
    whole, scales = nearest(weight, widths, 32)
    step = scales.float().repeat_interleave(32, dim=1)
    assert (scales > 0).all()
    off = (restore(whole, scales, weight, widths, 32) - weight).abs()
    assert (off <= 0.5 * step * (1 + 2 ** (bits - 11)) + 1e-12).all()


def test_texts_to_calibrate_on_may_be_blank_or_long_but_not_none(tiny_pool) -> None:
    plain, blank = (batches(tiny_pool, "bert", lines, 24) for lines in (["a b", "c d e"], ["a b", " ", "", "c d e"]))
    assert torch.equal(plain[0][0], blank[0][0])
    long = batches(tiny_pool, "bert", ["the quick fox jumps " * 400], 10**6)
    assert long[0][0].shape[1] <= tiny_pool.config("bert").max_position_embeddings
    for lines in ([], ["", " "], "the quick fox"):
        with pytest.raises(ArtifactError, match="a list of texts, of which one at least is not blank"):
            batches(tiny_pool, "bert", lines, 24)


def test_a_quantized_pool_opened_as_a_plain_one_says_so(tiny_folder) -> None:
    with pytest.raises(ArtifactError, match="open_pool"):
        Pool.open(tiny_folder / "pool8").block("llama:0-1")


def test_a_budget_below_the_floor_writes_nothing(tiny_folder, sensitivity, tmp_path) -> None:
    with pytest.raises(ArtifactError, match=r"quantize.budget_bits: 2 is below the floor of \d\.\d+ bits") as caught:
        quantized(tiny_folder, tmp_path / "low", sensitivity, budget_bits=2.0)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_missing_scores_and_moments_are_named(tiny_folder, sensitivity, tmp_path) -> None:
    with pytest.raises(ArtifactError, match="sensitivity"):
        quantized(tiny_folder, tmp_path / "low")
    bare = tmp_path / "bare"
    with output_folder(bare) as folder:
        (folder / "blocks").mkdir()
        for file in (sensitivity / "blocks").iterdir():
            kept = {n: t for n, t in load_file(file).items() if n.startswith("output|")}
            save_file(kept, folder / "blocks" / file.name, {"pool": manifest_sha(tiny_folder / "pool")})
    with pytest.raises(ArtifactError, match="moments"):
        quantized(tiny_folder, tmp_path / "low", bare, budget_bits=7.5)
    with pytest.raises(ArtifactError, match="sparsity"):
        quantized(tiny_folder, tmp_path / "low", bare, scheme="paper", budget_bits=7.5)
    assert not (tmp_path / "low").exists()
    other = tmp_path / "other"
    with output_folder(other) as folder:
        shutil.copytree(sensitivity / "blocks", folder / "blocks")
        first = folder / Pool.open(tiny_folder / "pool").info(Pool.open(tiny_folder / "pool").ids[0]).file
        save_file(load_file(first), first, {"pool": "of other weights"})
    with output_folder(tmp_path / "foreign") as folder:
        (folder / "blocks").mkdir()
        for file in (sensitivity / "blocks").iterdir():
            shutil.copyfile(file, folder / "blocks" / f"a{file.name}")
    with pytest.raises(ArtifactError, match="foreign: measured on another pool than"):
        quantized(tiny_folder, tmp_path / "low", tmp_path / "foreign", budget_bits=7.5)
    with pytest.raises(ArtifactError, match="other: measured on another pool than"):
        quantized(tiny_folder, tmp_path / "low", other, budget_bits=7.5)
    settings = tiny_params().quantize
    with pytest.raises(P.ParamsError, match="budget_bit: unknown key, did you mean 'budget_bits'"):
        settings.changed(budget_bit=5.5)
    with pytest.raises(P.ParamsError, match="rounding: Input should be"):
        quantize_pool(tiny_folder / "pool", tmp_path / "low", settings.model_copy(update={"rounding": "compensate"}))
    with pytest.raises(ArtifactError, match="pool8: quantized already"):
        quantize_pool(tiny_folder / "pool8", tmp_path / "low", tiny_params(quantize={"scheme": "nf4"}).quantize)


def test_weights_that_are_not_finite_are_refused_by_name(tiny_folder, tmp_path) -> None:
    bad = tmp_path / "pool"
    with output_folder(bad) as folder:
        shutil.copytree(tiny_folder / "pool", folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        file = folder / "blocks" / "opt_1-2.safetensors"
        tensors = load_file(file)
        tensors["stack.0.fc1.weight"][3, 5] = float("nan")
        save_file(tensors, file)
    for changes in (UNIFORM | {"bits": 4}, {"scheme": "nf4"}):
        with pytest.raises(ArtifactError, match=r"block opt:1-2: stack\.0\.fc1\.weight is not finite"):
            quantize_pool(bad, tmp_path / "low", tiny_params(quantize=changes).quantize)
    lines = public_lines(tiny_folder / "tasks", ["boolq"], 4)
    with pytest.raises(ArtifactError, match=r"opt:1-2: stack\.0\.fc1"):
        write_sensitivity(bad, tmp_path / "scores", lines, 32, tiny_params().sensitivity)
    assert {path.name for path in tmp_path.iterdir()} == {"pool"}


@pytest.mark.parametrize("harm", ["truncate", "flip"])
def test_a_damaged_block_file_is_named(harm, tiny_folder, tmp_path) -> None:
    shutil.copytree(tiny_folder / "pool8", tmp_path / "pool")
    file = tmp_path / "pool" / "blocks" / "bert_0-1.safetensors"
    content = bytearray(file.read_bytes())
    if harm == "truncate":
        content = content[:-100]
    else:
        content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="bert_0-1") as caught:
        open_pool(tmp_path / "pool")
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="bert_0-1"):
        quantize_pool(tmp_path / "pool", tmp_path / "low", tiny_params(quantize=UNIFORM).quantize)
    assert not (tmp_path / "low").exists()


def test_bad_arguments_are_refused() -> None:
    weight = torch.ones(2, 4)
    with pytest.raises(ArtifactError, match="9 bits have no packing"):
        pack(weight.to(torch.int8), weight[:, :1].half(), weight, torch.tensor([9, 4], dtype=torch.uint8))
    with pytest.raises(ArtifactError, match="back end"):
        encode(torch.ones(2, 2), "fp2")


def test_offsets_lead_to_a_rows_own_bits_and_scales() -> None:
    counts = {0: 2, 2: 1, 3: 2, 4: 3, 5: 1, 6: 2, 7: 1, 8: 2, 16: 2}
    layout = Layout(counts, 64, 32)
    widths = torch.tensor([width for width, n in counts.items() for _ in range(n)])  # in the packed order
    of_row = {f"plane{plane}": torch.nonzero(widths & plane)[:, 0].tolist() for plane in PLANES}
    of_row["scales"] = torch.nonzero((widths > 0) & (widths < 16))[:, 0].tolist()
    assert {name: len(rows) for name, rows in of_row.items()} == {
        name: shape[0] for name, (shape, _) in layout.shapes().items() if name != "widths"
    }
    found = layout.offsets()
    for place, width in enumerate(widths.tolist()):
        for column, name in enumerate(["scales", *(f"plane{plane}" for plane in PLANES)]):
            if place in of_row[name]:
                assert of_row[name][place + found[width][column]] == place


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel runs here")
def test_where_the_kernel_does_not_run_one_line_says_so() -> None:
    kernel.cache_clear()
    with pytest.warns(UserWarning, match="unpacked by plain torch, several times slower") as told:
        found = [kernel() for _ in range(2)]
    assert found == [None, None]
    assert len(told) == 1


def test_rows_longer_than_a_members_positions_are_refused(tiny_folder, tmp_path) -> None:
    from assyllm.stages import sensitivity as stage

    given = json.loads(P.sections_json(tiny_params(), stage.SECTIONS))  # a local member's positions are in its folder
    given["tasks"]["max_tokens"]["boolq"] = 100_000
    with pytest.raises(ArtifactError, match=r"tasks\.max_tokens\.boolq: 100000 is more than the \d+ positions of"):
        stage.run(json.dumps(given), "code", tiny_folder / "pool", tiny_folder / "tasks", tmp_path / "s")
    assert not (tmp_path / "s").exists()
