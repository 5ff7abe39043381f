"""Passes, text in and text out, and the same numbers before and after."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from tests.ir.tiny_graphs import attention_block_graph, attention_graph, random_graph, run_outputs
from tidemill.base.dtypes import DType
from tidemill.base.errors import BuildError, UnsupportedError
from tidemill.builder.pass_contract import Pass, run_passes
from tidemill.builder.passes.dead_code import DeadCode
from tidemill.builder.passes.fuse_linear_gated import FuseLinearGated
from tidemill.builder.passes.fuse_linear_residual import FuseLinearResidual
from tidemill.builder.passes.fuse_norm_quantize import FuseNormQuantize
from tidemill.builder.passes.fuse_rope_cache import FuseRopeCache
from tidemill.builder.passes.hoist_gather import HoistGather
from tidemill.builder.passes.pad_heads import PadHeads
from tidemill.builder.passes.quantize_cache import QuantizeCache
from tidemill.builder.passes.quantize_linears import QuantizeLinears
from tidemill.builder.pipelines.cpu import cpu_passes, run_cpu_pipeline
from tidemill.ir.graph import Graph
from tidemill.ir.storage import narrow
from tidemill.ir.text import parse_graph, print_op
from tidemill.quant.schemes import NAME_TO_SCHEME, NO_QUANTIZATION, Quantization

HEADER = """graph "g" {
input %x: f32[T, 4]
constant %w: f32[4, 4]
constant %v: f32[4, 4]
constant %b: f32[4]
"""


def parse(ops: str, outputs: str) -> Graph:
    lines = [f"output {name}" for name in outputs.split()]
    return parse_graph("\n".join([HEADER.strip(), *ops.strip().splitlines(), *lines, "}"]))


def ops_text(graph: Graph) -> str:
    return "\n".join(map(print_op, graph.ops))


def check_rewrite(each: Pass, before: str, after: str) -> None:
    result = each.apply(parse(before, "%z"))
    assert ops_text(result) == after.strip()
    assert each.apply(result) == result


def check_untouched(each: Pass, ops: str, outputs: str) -> None:
    graph = parse(ops, outputs)
    assert each.apply(graph) == graph


def test_fuse_linear_residual_joins_product_and_addition_on_either_side() -> None:
    check_rewrite(
        FuseLinearResidual(),
        """
%r: f32[T, 4] = silu(%x)
%p: f32[T, 4] = linear(%r, %w, %b) layer 1
%s: f32[T, 4] = silu(%x)
%y: f32[T, 4] = add(%s, %p) layer 1
%q: f32[T, 4] = linear(%r, %w)
%z: f32[T, 4] = add(%q, %y)
""",
        """
%r: f32[T, 4] = silu(%x)
%s: f32[T, 4] = silu(%x)
%y: f32[T, 4] = linear_residual(%r, %w, %b, %s) layer 1
%z: f32[T, 4] = linear_residual(%r, %w, %y)
""",
    )


RESIDUAL = "%r: f32[T, 4] = silu(%x)\n%p: f32[T, 4] = linear(%x, %w)\n"


@pytest.mark.parametrize(
    ("ops", "outputs"),
    [
        (RESIDUAL + "%z: f32[T, 4] = add(%r, %p)\n%u: f32[T, 4] = silu(%r)", "%z %u"),
        (RESIDUAL + "%z: f32[T, 4] = add(%r, %p)\n%u: f32[T, 4] = silu(%p)", "%z %u"),
        (RESIDUAL + "%z: f32[T, 4] = add(%r, %p)", "%z %r"),
        (RESIDUAL + "%z: f32[T, 4] = add(%r, %p)", "%z %p"),
        ("%p: f32[T, 4] = linear(%x, %w)\n%z: f32[T, 4] = add(%x, %p)", "%z"),
        ("%p: f32[T, 4] = linear(%x, %w)\n%z: f32[T, 4] = add(%p, %p)", "%z"),
        (RESIDUAL.replace("linear(%x", "linear(%r") + "%z: f32[T, 4] = add(%r, %p)", "%z"),
    ],
    ids=["residual_used_later", "product_used_twice", "residual_is_output", "product_is_output",
         "residual_is_graph_input", "product_added_to_itself", "residual_is_multiplied"],
)  # fmt: skip
def test_fuse_linear_residual_leaves_what_others_still_need(ops: str, outputs: str) -> None:
    check_untouched(FuseLinearResidual(), ops, outputs)


def test_fuse_linear_residual_does_not_move_a_product_past_the_end_of_its_input() -> None:
    ops = """
%a: f32[T, 4] = silu(%x)
%r: f32[T, 4] = silu(%x)
%p: f32[T, 4] = linear(%a, %w)
%q: f32[T, 4] = linear(%x, %w)
%y: f32[T, 4] = add(%a, %q)
%z: f32[T, 4] = add(%r, %p)
"""
    graph = run_passes(parse(ops, "%y %z"), [FuseLinearResidual()])
    assert [op.kind for op in graph.ops] == ["silu", "silu", "linear", "linear_residual", "add"]


def test_fuse_linear_gated_joins_both_products_and_their_biases() -> None:
    check_rewrite(
        FuseLinearGated(),
        """
%f: f32[T, 4] = linear(%x, %w, %b)
%g: f32[T, 4] = linear(%x, %v, %b)
%s: f32[T, 4] = silu(%f)
%m: f32[T, 4] = mul(%s, %g) {dtype="f32"}
%h: f32[T, 4] = linear(%m, %w)
%i: f32[T, 4] = linear(%m, %v)
%t: f32[T, 4] = silu(%i)
%z: bf16[T, 4] = mul(%h, %t) {dtype="bf16"} layer 2
""",
        """
%m: f32[T, 4] = linear_gated(%x, %w, %v, %b, %b) {activation="silu", dtype="f32"}
%z: bf16[T, 4] = linear_gated(%m, %v, %w) {activation="silu", dtype="bf16"} layer 2
""",
    )


@pytest.mark.parametrize(
    "ops",
    [
        """
%f: f32[T, 4] = linear(%x, %w, %b)
%g: f32[T, 4] = linear(%x, %v)
%s: f32[T, 4] = silu(%f)
%z: f32[T, 4] = mul(%s, %g) {dtype="f32"}
""",
        """
%f: f32[T, 4] = linear(%x, %w)
%g: f32[T, 4] = linear(%f, %v)
%s: f32[T, 4] = silu(%f)
%z: f32[T, 4] = mul(%s, %g) {dtype="f32"}
""",
        """
%f: f32[T, 4] = linear(%x, %w)
%g: f32[T, 4] = linear(%x, %v)
%s: f32[T, 4] = silu(%f)
%z: f32[T, 4] = mul(%s, %s) {dtype="f32"}
""",
    ],
    ids=["one_bias", "gate_reads_fc", "same_branch_twice"],
)
def test_fuse_linear_gated_leaves_what_does_not_fit(ops: str) -> None:
    check_untouched(FuseLinearGated(), ops, "%z")


GATHERED = """
input %rows: i32[L]
input %ids: i32[T]
%h: f32[T, 4] = embedding(%ids, %w)
%o: f32[T, 4] = linear(%h, %w) layer 1
%r: f32[T, 4] = add(%h, %o) layer 1
%n: f32[T, 4] = rms_norm(%r, %b) {epsilon=0.1, dtype="f32"} layer 1
%p: f32[T, 4] = linear(%n, %v) layer 1
%s: f32[T, 4] = add(%r, %p) layer 1
%l: f32[L, 4] = gather_last(%s, %rows)
%z: f32[L, 4] = linear(%l, %w)
""".strip()


def test_hoist_gather_narrows_all_that_only_the_wanted_rows_need() -> None:
    result = HoistGather().apply(parse(GATHERED, "%z"))
    assert (
        ops_text(result)
        == """
%h: f32[T, 4] = embedding(%ids, %w)
%h.last: f32[L, 4] = gather_last(%h, %rows) layer 1
%o: f32[L, 4] = linear(%h.last, %w) layer 1
%r: f32[L, 4] = add(%h.last, %o) layer 1
%n: f32[L, 4] = rms_norm(%r, %b) {epsilon=0.1, dtype="f32"} layer 1
%p: f32[L, 4] = linear(%n, %v) layer 1
%s: f32[L, 4] = add(%r, %p) layer 1
%z: f32[L, 4] = linear(%s, %w)
""".strip()
    )
    assert HoistGather().apply(result) == result


def test_hoist_gather_leaves_whole_what_others_need_whole() -> None:
    graph = parse(GATHERED + "\n%u: f32[T, 4] = silu(%r)", "%z %u")
    kept = [op.outputs[0].type.shape[0] for op in HoistGather().apply(graph).ops]
    names = ["h", "o", "r", "r.last", "n", "p", "s", "z", "u"]
    assert dict(zip(names, kept, strict=True)) == {
        **dict.fromkeys("hor", "T"), "r.last": "L", **dict.fromkeys("npsz", "L"), "u": "T"
    }  # fmt: skip
    given_away = parse(GATHERED, "%z %s")
    assert HoistGather().apply(given_away) == given_away


def test_hoist_gather_stops_where_rows_meet_even_beside_an_mlp() -> None:
    heads = "num_heads=2, num_kv_heads=1, head_size=1, window=0, scale=1.0"
    graph = parse(
        f"""
input %rows: i32[L]
%m: f32[T, 4] = linear(%x, %w)
%a: f32[T, 4] = attention(%x) {{{heads}, dtype="f32", cache_dtype="f32"}}
%s: f32[T, 4] = add(%m, %a)
%z: f32[L, 4] = gather_last(%s, %rows)
""",
        "%z",
    )
    ops = HoistGather().apply(graph).ops
    kinds = ["linear", "attention", "gather_last", "gather_last", "add"]
    assert [op.kind for op in ops] == kinds


def test_fuse_rope_cache_cuts_rope_and_attention_at_the_cache() -> None:
    result = FuseRopeCache().apply(attention_graph())
    assert ops_text(result) == (
        "%layers.3.rotated: bf16[T, 8] = rope_cache(%qkv, %positions, %cos, %sin) {num_heads=2, "
        'num_kv_heads=1, head_size=4, rotary_dim=2, scale=0.5, dtype="bf16", '
        'cache_dtype="bf16"} layer 3\n'
        "%layers.3.attended: bf16[T, 8] = paged_attention(%layers.3.rotated) {num_heads=2, "
        'num_kv_heads=1, head_size=4, window=7, cache_dtype="bf16"} layer 3'
    )


def test_fuse_rope_cache_leaves_rotation_that_is_a_graph_output() -> None:
    graph = attention_graph()
    graph = replace(graph, outputs=(*graph.outputs, graph.ops[0].outputs[0]))
    assert FuseRopeCache().apply(graph) == graph


def test_pad_heads_follows_every_head_with_zeros_and_keeps_rotation_and_scale() -> None:
    result = PadHeads(unit=16).apply(attention_block_graph())
    assert ops_text(result) == (
        "%layers.3.qkv: f32[T, 64] = linear(%x, %w_qkv, %b_qkv) layer 3\n"
        "%layers.3.rotated: f32[T, 64] = rope(%layers.3.qkv, %positions, %cos, %sin) "
        "{num_heads=2, num_kv_heads=1, head_size=16, rotary_dim=2} layer 3\n"
        "%layers.3.attended: f32[T, 32] = attention(%layers.3.rotated) {num_heads=2, "
        "num_kv_heads=1, head_size=16, window=7, scale=0.5, "
        'dtype="f32", cache_dtype="f32"} layer 3\n'
        "%layers.3.out: f32[T, 5] = linear(%layers.3.attended, %w_out) layer 3"
    )
    assert PadHeads(unit=16).apply(result) == result


@pytest.mark.parametrize("unit", [3, 4, 7, 16])
def test_pad_heads_keeps_the_meaning_of_attention(unit: int) -> None:
    graph = attention_block_graph()
    (expected,) = run_outputs(graph, 2)
    (got,) = run_outputs(run_passes(graph, [PadHeads(unit)]), 2)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_pad_heads_leaves_heads_whose_weights_others_use() -> None:
    graph = attention_block_graph()
    other = replace(graph.ops[0], outputs=(replace(graph.ops[0].outputs[0], name="other"),))
    graph = replace(graph, ops=(*graph.ops, other), outputs=(*graph.outputs, *other.outputs))
    assert PadHeads(unit=16).apply(graph) == graph


def test_dead_code_removes_unused_ops_and_constants_but_keeps_inputs() -> None:
    graph = parse(
        """
%y: f32[T, 4] = linear(%x, %w)
%u: f32[T, 4] = silu(%y)
%t: f32[T, 4] = add(%u, %y)
""",
        "%y",
    )
    result = DeadCode().apply(graph)
    assert ops_text(result) == "%y: f32[T, 4] = linear(%x, %w)"
    assert [constant.value.name for constant in result.constants] == ["w"]
    assert result.inputs == graph.inputs
    assert DeadCode().apply(result) == result


def test_dead_code_keeps_attention_whose_result_is_unused_because_it_fills_the_cache() -> None:
    graph = replace(attention_graph(), outputs=())
    assert DeadCode().apply(graph) == graph


@pytest.mark.parametrize("seed", range(30))
def test_passes_keep_the_meaning_of_random_graphs(seed: int) -> None:
    graph = random_graph(seed)
    rewritten = run_passes(graph, cpu_passes(NO_QUANTIZATION))
    for got, expected in zip(run_outputs(rewritten, seed), run_outputs(graph, seed), strict=True):
        # Float64 and values grown by 24 random ops: only the order of additions may differ.
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_random_graphs_meet_both_linear_fusions() -> None:
    passes = cpu_passes(NO_QUANTIZATION)
    kinds = [op.kind for seed in range(30) for op in run_passes(random_graph(seed), passes).ops]
    assert kinds.count("linear_residual") > 20
    assert kinds.count("linear_gated") > 0


def test_rope_cache_keeps_the_meaning_of_attention() -> None:
    graph = attention_graph()
    (expected,) = run_outputs(graph, 1)
    (got,) = run_outputs(run_cpu_pipeline(graph), 1)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_pipeline_refuses_ops_without_a_kernel_and_lists_them() -> None:
    graph = parse("%y: f32[T, 4] = silu(%x)\n%z: f32[T, 4] = add(%y, %x)", "%z")
    with pytest.raises(UnsupportedError, match=r"op 0 silu %y; op 1 add %z"):
        run_cpu_pipeline(graph)


@dataclass(frozen=True)
class Breaker:
    name: str = "breaker"

    def apply(self, graph: Graph) -> Graph:
        return replace(graph, ops=graph.ops[1:])


def test_pass_that_breaks_the_graph_is_named_with_its_predecessors() -> None:
    with pytest.raises(BuildError) as caught:
        run_passes(attention_graph(), [DeadCode(), FuseRopeCache(), Breaker(), DeadCode()])
    assert caught.value.what == "pass breaker broke the graph"
    assert caught.value.where == "graph 'tiny', after passes: dead_code, fuse_rope_cache"
    assert "%layers.3.rotated is used before it is defined" in caught.value.got


def test_observer_sees_every_pass_in_order() -> None:
    seen: list[tuple[str, bool]] = []
    run_cpu_pipeline(
        attention_graph(), observe=lambda name, _, is_changed: seen.append((name, is_changed))
    )
    assert seen == [
        ("dead_code", False),
        ("pad_heads", False),
        ("hoist_gather", False),
        ("quantize_cache", False),
        ("quantize_linears", False),
        ("fuse_norm_quantize", False),
        ("fuse_rope_cache", True),
        ("fuse_linear_gated", False),
        ("fuse_linear_residual", False),
    ]


def test_quantize_cache_changes_what_is_stored_and_nothing_else() -> None:
    graph = attention_graph()
    result = QuantizeCache(DType.Q8).apply(graph)
    assert ops_text(result) == ops_text(graph).replace('cache_dtype="bf16"', 'cache_dtype="q8"')
    assert 'cache_dtype="q8"' in ops_text(result)
    assert QuantizeCache().apply(graph) == graph


def test_quantize_linears_gives_layers_and_head_their_schemes_and_quantises_an_x_once() -> None:
    table = "constant %t: f32[9, 4]"
    before = """
%h: f32[T, 4] = embedding(%ids, %t)
%p: f32[T, 4] = linear(%x, %w, %b) layer 0
%q: f32[T, 4] = linear(%x, %v) layer 0
%s: f32[T, 4] = add(%p, %q) layer 0
%z: f32[T, 9] = linear(%s, %t)
"""
    header = HEADER.strip().splitlines()
    lines = [*header, "input %ids: i32[T]", table, *before.strip().splitlines()]
    graph = parse_graph("\n".join([*lines, "output %h", "output %z", "}"]))
    quantization = Quantization(NAME_TO_SCHEME["w8a8"], NAME_TO_SCHEME["w8a16"])
    result = QuantizeLinears(quantization).apply(graph)
    after = """
%h: f32[T, 4] = embedding(%ids, %t)
%x.q8: q8[T, 4] = quantize(%x) layer 0
%p: f32[T, 4] = linear(%x.q8, %w, %b) layer 0
%q: f32[T, 4] = linear(%x.q8, %v) layer 0
%s: f32[T, 4] = add(%p, %q) layer 0
%z: f32[T, 9] = linear(%s, %t)
"""
    assert ops_text(result) == after.strip()
    dtypes = {each.value.name: each.value.type.dtype for each in result.constants}
    assert {name: dtype.value for name, dtype in dtypes.items()} == {
        "w": "q8", "v": "q8", "b": "f32", "t": "q8"
    }  # fmt: skip
    assert QuantizeLinears().apply(graph) == graph
    # A table that is not the head's, too, is quantised as the head is.
    untied = [line.replace("(%s, %t)", "(%s, %u)") for line in lines]
    untied.insert(lines.index(table), "constant %u: f32[9, 4]")
    graph = parse_graph("\n".join([*untied, "output %h", "output %z", "}"]))
    result = QuantizeLinears(quantization).apply(graph)
    tables = {each.value.name: each.value.type.dtype.value for each in result.constants}
    assert (tables["t"], tables["u"]) == ("q8", "q8")


def test_fuse_norm_quantize_joins_a_norm_and_its_only_user() -> None:
    check_rewrite(
        FuseNormQuantize(),
        """
%n: f32[T, 4] = rms_norm(%x, %b) {epsilon=1e-05, dtype="f32"} layer 2
%z: q8[T, 4] = quantize(%n) layer 2
""",
        """
%z: q8[T, 4] = rms_norm(%x, %b) {epsilon=1e-05, dtype="q8"} layer 2
""",
    )
    shared = """
%n: f32[T, 4] = rms_norm(%x, %b) {epsilon=1e-05, dtype="f32"}
%z: q8[T, 4] = quantize(%n)
%u: f32[T, 4] = silu(%n)
"""
    check_untouched(FuseNormQuantize(), shared, "%z %u")


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_quantised_pipeline_keeps_the_numbers_within_the_levels(scheme: str) -> None:
    graph = attention_block_graph()
    (exact,) = run_outputs(run_cpu_pipeline(graph), 1)
    quantization = Quantization(NAME_TO_SCHEME[scheme], NAME_TO_SCHEME[scheme])
    (got,) = run_outputs(run_cpu_pipeline(graph, quantization), 1)
    error = np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 0.02


@pytest.mark.parametrize("scheme", ["w8a8", "fp8", "w4a16_g32"])
def test_matrix_that_is_quantised_part_by_part_is_as_one_quantised_whole(scheme: str) -> None:
    weight = np.random.default_rng(6).standard_normal((701, 512), np.float32)
    graph = parse_graph(
        'graph "g" {\ninput %x: f32[T, 512]\nconstant %w: f32[701, 512]\n'
        "%z: f32[T, 701] = linear(%x, %w)\noutput %z\n}"
    )
    graph = replace(graph, constants=(replace(graph.constants[0], load=lambda: weight),))
    both = Quantization(NAME_TO_SCHEME[scheme], NAME_TO_SCHEME[scheme])
    (constant,) = QuantizeLinears(both).apply(graph).constants
    assert constant.load is not None
    np.testing.assert_array_equal(constant.load(), narrow(weight, constant.value.type.dtype))
