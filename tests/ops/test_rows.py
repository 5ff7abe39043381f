"""Every op has a whole row: a rule, an attribute schema, a reference and a cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.ops.judge import make_op, tensor
from tidemill.ir.graph import AttrValue, Op, TensorType
from tidemill.ir.rules import TypeFault
from tidemill.ops.row import StepSizes
from tidemill.ops.table import OPS, tabulate

HEADS: dict[str, AttrValue] = {"num_heads": 6, "num_kv_heads": 2, "head_size": 8}
TABLES = (tensor("i32", "T"), tensor("f32", 64, 3), tensor("f32", 64, 3))
# One good call of each op: operand types, attributes, output type.
CALLS: dict[str, tuple[tuple[TensorType, ...], dict[str, AttrValue], TensorType]] = {
    "embedding": ((tensor("i32", "T"), tensor("bf16", 7, 5)), {}, tensor("f32", "T", 5)),
    "rms_norm": (
        (tensor("f32", "T", 5), tensor("f32", 5)),
        {"epsilon": 1e-6, "dtype": "bf16"},
        tensor("bf16", "T", 5),
    ),
    "linear": (
        (tensor("bf16", "T", 5), tensor("bf16", 7, 5), tensor("f32", 7)),
        {},
        tensor("f32", "T", 7),
    ),
    "linear_residual": (
        (tensor("f32", "T", 5), tensor("f16", 7, 5), tensor("f32", "T", 7)),
        {},
        tensor("f32", "T", 7),
    ),
    "linear_gated": (
        (tensor("bf16", "T", 5), tensor("bf16", 7, 5), tensor("bf16", 7, 5)),
        {"activation": "silu", "dtype": "bf16"},
        tensor("bf16", "T", 7),
    ),
    "rope": (
        (tensor("f32", "T", 80), *TABLES),
        {**HEADS, "rotary_dim": 6},
        tensor("f32", "T", 80),
    ),
    "attention": (
        (tensor("f32", "T", 80),),
        {**HEADS, "window": 0, "scale": 0.25, "dtype": "bf16", "cache_dtype": "bf16"},
        tensor("bf16", "T", 48),
    ),
    "rope_cache": (
        (tensor("f32", "T", 80), *TABLES),
        {**HEADS, "rotary_dim": 6, "scale": 0.25, "dtype": "f32", "cache_dtype": "f16"},
        tensor("f32", "T", 48),
    ),
    "paged_attention": (
        (tensor("bf16", "T", 48),),
        {**HEADS, "window": 0, "cache_dtype": "bf16"},
        tensor("bf16", "T", 48),
    ),
    "quantize": ((tensor("bf16", "T", 5),), {}, tensor("q8", "T", 5)),
    "silu": ((tensor("f32", "T", 5),), {}, tensor("f32", "T", 5)),
    "mul": ((tensor("f32", "T", 5),) * 2, {"dtype": "bf16"}, tensor("bf16", "T", 5)),
    "add": ((tensor("f32", "T", 5),) * 2, {}, tensor("f32", "T", 5)),
    "gather_last": ((tensor("f32", "T", 5), tensor("i32", "L")), {}, tensor("f32", "L", 5)),
    "sample": ((tensor("f32", "L", 101),), {}, tensor("i32", "L")),
}


def good_op(kind: str) -> Op:
    types, attrs, _ = CALLS[kind]
    return make_op(kind, types, attrs)


def test_every_row_has_a_good_call_here() -> None:
    assert set(CALLS) == set(OPS)


@pytest.mark.parametrize("kind", CALLS)
def test_rule_infers_the_output_type(kind: str) -> None:
    assert [value.type for value in good_op(kind).outputs] == [CALLS[kind][2]]


@pytest.mark.parametrize("kind", CALLS)
def test_rule_refuses_another_rank_type_count_or_attribute(kind: str) -> None:
    types, attrs, _ = CALLS[kind]
    for index, each in enumerate(types):
        longer = replace(each, shape=(*each.shape, 2, 2))
        if kind != "silu":  # takes any shape
            with pytest.raises(TypeFault):
                make_op(kind, [*types[:index], longer, *types[index + 1 :]], attrs)
        with pytest.raises(TypeFault):
            other = replace(each, dtype=tensor("u8").dtype)
            make_op(kind, [*types[:index], other, *types[index + 1 :]], attrs)
    for bad_types in ((), (*types, *types)):
        with pytest.raises(TypeFault):
            make_op(kind, bad_types, attrs)
    for name in attrs:
        with pytest.raises(TypeFault):
            make_op(kind, types, {key: value for key, value in attrs.items() if key != name})
        with pytest.raises(TypeFault):
            make_op(kind, types, {**attrs, name: b"no such type"})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("kind", "attr", "value"),
    [
        ("rms_norm", "dtype", "f16"),
        ("mul", "dtype", "i32"),
        ("attention", "dtype", "f64"),
        ("attention", "cache_dtype", "i8"),
        ("attention", "num_kv_heads", 4),
        ("attention", "num_heads", 0),
        ("attention", "window", -1),
        ("paged_attention", "window", -1),
        ("rope", "rotary_dim", 5),
        ("rope", "rotary_dim", 10),
        ("rope", "head_size", -8),
        ("linear_gated", "activation", "gelu"),
    ],
)
def test_rule_refuses_attribute_values_out_of_range(kind: str, attr: str, value: AttrValue) -> None:
    types, attrs, _ = CALLS[kind]
    with pytest.raises(TypeFault):
        make_op(kind, types, {**attrs, attr: value})


@pytest.mark.parametrize(
    "types",
    [
        (tensor("f32", "T", 5), tensor("bf16", 7, 5)),
        (tensor("bf16", "T", 5), tensor("f16", 7, 5)),
        (tensor("f32", "T", 5), tensor("f32", 5, 7)),
        (tensor("q8", "T", 5), tensor("bf16", 7, 5)),
        (tensor("f32", "T", 5), tensor("f32", "T", 5)),
        (tensor("f32", "T", 5), tensor("f32", 7, 5), tensor("f32", 5)),
    ],
    ids=[
        "f32_meets_bf16",
        "bf16_meets_f16",
        "transposed",
        "levels_meet_bf16",
        "weight_of_unknown_size",
        "short_bias",
    ],
)
def test_linear_refuses_operands_that_do_not_fit(types: tuple[TensorType, ...]) -> None:
    with pytest.raises(TypeFault):
        make_op("linear", types)


SIZES = StepSizes(tokens=9, sequences=2, logit_rows=2, kv_tokens=20, attention_pairs=70)


@pytest.mark.parametrize(
    ("kind", "flops", "num_bytes"),
    [
        ("embedding", 0, 9 * 5 * (2 + 4) + 9 * 4),
        ("rms_norm", 4 * 45, 45 * 4 + 5 * 4 + 45 * 2),
        ("linear", 2 * 9 * 5 * 7, 45 * 2 + 35 * 2 + 7 * 4 + 63 * 4),
        ("linear_residual", 2 * 9 * 5 * 7 + 63, 45 * 4 + 35 * 2 + 2 * 63 * 4),
        ("linear_gated", 2 * 2 * 9 * 5 * 7 + 5 * 63, 45 * 2 + 2 * 35 * 2 + 63 * 2),
        ("rope", 3 * 9 * 8 * 6, 2 * 9 * 80 * 4 + 9 * 4 + 2 * 9 * 3 * 4),
        ("attention", 4 * 70 * 48, 2 * 20 * 16 * 2 + 9 * 80 * 4 + 9 * 48 * 2 + 2 * 9 * 16 * 2),
        ("rope_cache", 3 * 9 * 8 * 6, 9 * (80 + 48) * 4 + 9 * 4 + 2 * 27 * 4 + 2 * 9 * 16 * 2),
        ("paged_attention", 4 * 70 * 48, 2 * 20 * 16 * 2 + 2 * 9 * 48 * 2),
        ("quantize", 3 * 45, 45 * 2 + 45 + 9 * 4),
        ("silu", 4 * 45, 2 * 45 * 4),
        ("mul", 45, 2 * 45 * 4 + 45 * 2),
        ("add", 45, 3 * 45 * 4),
        ("gather_last", 0, 2 * 10 * 4 + 2 * 4),
        ("sample", 202, 202 * 4 + 2 * 4),
    ],
)
def test_cost_counts_flops_and_bytes(kind: str, flops: float, num_bytes: float) -> None:
    cost = OPS[kind].cost(good_op(kind), SIZES)
    assert (cost.flops, cost.bytes) == (flops, num_bytes)


def test_window_bounds_the_cost_of_attention() -> None:
    types, attrs, _ = CALLS["paged_attention"]
    windowed = make_op("paged_attention", types, {**attrs, "window": 3})
    cost = OPS["paged_attention"].cost(windowed, SIZES)
    # 9 rows see 3 positions each; 2 sequences read theirs and 2 before them.
    assert (cost.flops, cost.bytes) == (4 * 27 * 48, 2 * 13 * 16 * 2 + 2 * 9 * 48 * 2)


def test_only_linear_residual_overwrites_and_only_cache_writers_have_effects() -> None:
    assert {kind: dict(row.inplace) for kind, row in OPS.items() if row.inplace} == {
        "linear_residual": {0: -1}
    }
    assert {kind for kind, row in OPS.items() if row.writes_cache} == {"attention", "rope_cache"}


def test_package_without_a_row_fails_with_its_name() -> None:
    with pytest.raises(ImportError, match="'softplus'"):
        tabulate(tuple(OPS.values()), [*OPS, "softplus"])


def test_row_without_a_package_fails_with_its_name() -> None:
    with pytest.raises(ImportError, match="'add'"):
        tabulate(tuple(OPS.values()), [kind for kind in OPS if kind != "add"])
