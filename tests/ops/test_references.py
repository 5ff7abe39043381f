"""The references against torch, and against each other where one op is made of others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops.judge import make_op, run, tensor
from tidemill.base.dtypes import DType
from tidemill.ir.graph import AttrValue
from tidemill.ir.storage import Array, rounded
from tidemill.ops.batch import Batch, KvStore, Numerics

WIDE = Numerics(np.float64)
HEADS: dict[str, AttrValue] = {"num_heads": 6, "num_kv_heads": 2, "head_size": 8}
STORED: dict[str, AttrValue] = {**HEADS, "scale": 0.3, "dtype": "f32", "cache_dtype": "f32"}
ATTENTION: dict[str, AttrValue] = {**STORED, "window": 0}
QKV_WIDTH = (6 + 2 * 2) * 8


def random_array(seed: int, *shape: int) -> Array:
    print(f"seed {seed}")
    return np.random.default_rng(seed).normal(size=shape)


def close(got: Array, expected: Array | torch.Tensor) -> None:
    np.testing.assert_allclose(got, np.asarray(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_embedding_looks_rows_up(rows: int) -> None:
    table = random_array(1, 11, 3)
    tokens = np.arange(10, 10 - rows, -1, dtype=np.int32)
    op = make_op("embedding", [tensor("i32", "T"), tensor("f32", 11, 3)])
    close(run(op, tokens, table, numerics=WIDE), table[10 - np.arange(rows)])


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_rms_norm_agrees_with_torch(rows: int) -> None:
    x, weight = random_array(2, rows, 37), random_array(3, 37)
    types = [tensor("f32", "T", 37), tensor("f32", 37)]
    op = make_op("rms_norm", types, {"epsilon": 1e-3, "dtype": "f32"})
    expected = torch.nn.functional.rms_norm(
        torch.from_numpy(x), (37,), torch.from_numpy(weight), 1e-3
    )
    close(run(op, x, weight, numerics=WIDE), expected)


def test_rms_norm_of_a_zero_row_is_zero() -> None:
    op = make_op(
        "rms_norm", [tensor("f32", "T", 4), tensor("f32", 4)], {"epsilon": 1e-6, "dtype": "f32"}
    )
    assert not run(op, np.zeros((1, 4)), np.ones(4)).any()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_linear_and_linear_residual_agree_with_torch(rows: int, has_bias: bool) -> None:
    x, weight, bias = random_array(4, rows, 13), random_array(5, 7, 13), random_array(6, 7)
    residual = random_array(7, rows, 7)
    types = [tensor("f32", "T", 13), tensor("f32", 7, 13)] + [tensor("f32", 7)] * has_bias
    operands = [x, weight] + [bias] * has_bias
    expected = torch.nn.functional.linear(*map(torch.from_numpy, operands))

    close(run(make_op("linear", types), *operands, numerics=WIDE), expected)
    op = make_op("linear_residual", [*types, tensor("f32", "T", 7)])
    close(run(op, *operands, residual, numerics=WIDE), residual + np.asarray(expected))


def test_linear_gated_is_its_four_ops() -> None:
    x, fc, gate = random_array(8, 5, 13), random_array(9, 7, 13), random_array(10, 7, 13)
    fc_bias, gate_bias = random_array(11, 7), random_array(12, 7)
    types = [tensor("f32", "T", 13), *[tensor("f32", 7, 13)] * 2, *[tensor("f32", 7)] * 2]
    op = make_op("linear_gated", types, {"activation": "silu", "dtype": "f32"})
    activated = torch.nn.functional.silu(torch.from_numpy(x @ fc.T + fc_bias))
    expected = np.asarray(activated) * (x @ gate.T + gate_bias)
    close(run(op, x, fc, gate, fc_bias, gate_bias, numerics=WIDE), expected)


def test_silu_agrees_with_torch_and_has_no_warning_at_the_extremes() -> None:
    x = np.array([[-1e4, -100.0, -1.5, -0.0, 0.0, 2.0, 1e4]], dtype=np.float32)
    got = run(make_op("silu", [tensor("f32", "T", 7)]), x)
    np.testing.assert_allclose(got, torch.nn.functional.silu(torch.from_numpy(x)), atol=1e-7)


def test_add_mul_and_gather_last_do_what_they_say() -> None:
    x, y = random_array(13, 4, 3), random_array(14, 4, 3)
    two = [tensor("f32", "T", 3)] * 2
    close(run(make_op("add", two), x, y, numerics=WIDE), x + y)
    close(run(make_op("mul", two, {"dtype": "f32"}), x, y, numerics=WIDE), x * y)
    rows = np.array([3, 0, 3], dtype=np.int32)
    op = make_op("gather_last", [two[0], tensor("i32", "L")])
    close(run(op, x, rows, numerics=WIDE), x[[3, 0, 3]])


def rotary_tables(seed: int, half: int) -> tuple[Array, Array]:
    angles = random_array(seed, 50, half)
    return np.cos(angles), np.sin(angles)


@pytest.mark.parametrize("rotary_dim", [8, 6])
def test_rope_turns_each_pair_by_its_angle_and_leaves_the_rest(rotary_dim: int) -> None:
    half = rotary_dim // 2
    cos, sin = rotary_tables(15, half)
    qkv, positions = random_array(16, 3, QKV_WIDTH), np.array([49, 0, 7], dtype=np.int32)
    types = [tensor("f32", "T", QKV_WIDTH), tensor("i32", "T"), *[tensor("f32", 50, half)] * 2]
    got = run(
        make_op("rope", types, {**HEADS, "rotary_dim": rotary_dim}),
        qkv, positions, cos, sin, numerics=WIDE,
    ).reshape(3, 10, 8)  # fmt: skip

    heads = qkv.reshape(3, 10, 8)
    turns = (cos + 1j * sin)[positions][:, None]
    pairs = (heads[:, :8, :half] + 1j * heads[:, :8, half:rotary_dim]) * turns
    close(got[:, :8, :half] + 1j * got[:, :8, half:rotary_dim], pairs)
    close(got[:, :8, rotary_dim:], heads[:, :8, rotary_dim:])
    close(got[:, 8:], heads[:, 8:])


def torch_attention(qkv: Array, first: int, window: int = 1000) -> Array:
    """Attend over one whole sequence, causally within a window; return rows from `first` on."""
    ones = torch.ones(len(qkv), len(qkv), dtype=torch.bool)
    mask = ones.tril() & ones.triu(1 - window)
    heads = torch.from_numpy(qkv).reshape(len(qkv), 10, 8).transpose(0, 1)
    keys, values = (heads[at : at + 2].repeat_interleave(3, 0) for at in (6, 8))
    out = torch.nn.functional.scaled_dot_product_attention(
        heads[:6], keys, values, attn_mask=mask, scale=0.3
    )
    return np.asarray(out.transpose(0, 1).reshape(len(qkv), 48))[first:]


@pytest.mark.parametrize("window", [0, 1, 5, 16, 17])
@pytest.mark.parametrize("chunks", [(1,), (17,), (5, 12), (16, 1), (1, 1, 15)])
def test_attention_agrees_with_torch_however_the_prompt_is_cut(
    chunks: tuple[int, ...], window: int
) -> None:
    qkv = random_array(17, sum(chunks), QKV_WIDTH)
    op = make_op("attention", [tensor("f32", "T", QKV_WIDTH)], {**ATTENTION, "window": window})
    store, done = KvStore(), 0
    for chunk in chunks:
        batch = Batch((0, chunk), (done,), store)
        got = run(op, qkv[done : done + chunk], batch=batch, numerics=WIDE)
        close(got, torch_attention(qkv[: done + chunk], done, window or 1000))
        done += chunk


def test_attention_keeps_sequences_apart_and_skips_empty_ones() -> None:
    qkv = [random_array(seed, length, QKV_WIDTH) for seed, length in ((18, 4), (19, 3))]
    op = make_op("attention", [tensor("f32", "T", QKV_WIDTH)], ATTENTION)
    # Slots 5 and 2 of the store; the sequence in slot 0 has no tokens in this step.
    batch = Batch((0, 4, 4, 7), (0, 0, 0), sequences=(5, 0, 2))
    got = run(op, np.concatenate(qkv), batch=batch, numerics=WIDE)
    close(got, np.concatenate([torch_attention(each, 0) for each in qkv]))


def test_huge_scores_do_not_overflow() -> None:
    op = make_op("attention", [tensor("f32", "T", QKV_WIDTH)], ATTENTION)
    qkv = 1e4 * random_array(20, 6, QKV_WIDTH)
    assert np.isfinite(run(op, qkv, batch=Batch((0, 6), (0,)))).all()


def test_rope_cache_then_paged_attention_is_rope_then_attention() -> None:
    cos, sin = rotary_tables(21, 4)
    qkv, positions = random_array(22, 7, QKV_WIDTH), np.arange(7, dtype=np.int32)
    types = [tensor("f32", "T", QKV_WIDTH), tensor("i32", "T"), *[tensor("f32", 50, 4)] * 2]
    rope: dict[str, AttrValue] = {**HEADS, "rotary_dim": 8}
    rotated = run(make_op("rope", types, rope), qkv, positions, cos, sin, numerics=WIDE)
    plain, fused = Batch((0, 7), (0,)), Batch((0, 7), (0,))
    attention = make_op("attention", [types[0]], ATTENTION)
    expected = run(attention, rotated, batch=plain, numerics=WIDE)

    rope_cache = make_op("rope_cache", types, {**rope, **STORED})
    queries = run(rope_cache, qkv, positions, cos, sin, batch=fused, numerics=WIDE)
    paged_attrs: dict[str, AttrValue] = {**HEADS, "window": 0, "cache_dtype": "f32"}
    paged = make_op("paged_attention", [tensor("f32", "T", 48)], paged_attrs)
    close(run(paged, queries, batch=fused, numerics=WIDE), expected)
    for got, stored in zip(fused.store.read(0, 0), plain.store.read(0, 0), strict=True):
        np.testing.assert_array_equal(got, stored)


def test_bf16_stays_wide_by_default_and_rounds_when_asked() -> None:
    attrs: dict[str, AttrValue] = {**ATTENTION, "dtype": "bf16", "cache_dtype": "bf16"}
    op = make_op("attention", [tensor("f32", "T", QKV_WIDTH)], attrs)
    qkv = random_array(23, 5, QKV_WIDTH).astype(np.float32)
    wide_batch, narrow_batch = Batch((0, 5), (0,)), Batch((0, 5), (0,))
    wide = run(op, qkv, batch=wide_batch)
    narrow = run(op, qkv, batch=narrow_batch, numerics=Numerics(round_activations=True))

    assert (rounded(wide, DType.BF16) != wide).any()
    np.testing.assert_array_equal(rounded(narrow, DType.BF16), narrow)
    keys, _ = narrow_batch.store.read(0, 0)
    np.testing.assert_array_equal(rounded(keys, DType.BF16), keys)
    np.testing.assert_allclose(narrow, wide, atol=0.05)


def test_store_forgets_positions_that_are_computed_again() -> None:
    store = KvStore()
    old = random_array(24, 5, 2, 8)
    new = random_array(25, 2, 2, 8)
    store.write(0, 1, 0, old, old)
    store.write(0, 1, 3, new, new)
    keys, values = store.read(0, 1)
    np.testing.assert_array_equal(keys, np.concatenate([old[:3], new]))
    np.testing.assert_array_equal(values, keys)
    with pytest.raises(AssertionError, match="has 5 positions, not 6"):
        store.write(0, 1, 6, new, new)
