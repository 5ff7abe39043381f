"""Edits of a row of logits on the CPU, into scratch; the raw logits stay for log-probabilities.

Legend: an `edits` row holds four words: the address and number of records, the address of a bias
row, the address of a mask; 0 where there is none. A record is (i32 token, f32 add, f32 factor,
f32 subtract). A mask has a bit for each token, set where allowed, in words of 32. Bias and mask
reach to the end of the padded row. A row without edits costs four loads.
"""

from __future__ import annotations

from tidemill.base.abi import EDIT_RECORD_WORDS, EDIT_WORDS
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES
from tidemill.codegen.types import F32, I32, I64
from tidemill.ops.layout import wide_row

BANNED = float("-inf")


def edit_row(
    f: Function, edits: Pointer, logits: Pointer, scratch: Pointer, vocab_size: int
) -> Pointer:
    """Emit the edits of one row; returns where its logits are: scratch if there were any."""
    words = [edits[word] for word in range(EDIT_WORDS)]
    _, num_records, bias, mask = words
    is_edited = (num_records | bias | mask).ne(0)
    with f.when(is_edited):
        _copy(f, logits, scratch, bias, vocab_size)
        _run_records(f, words[0], num_records, scratch)
        with f.when(mask.ne(0)):
            _keep_allowed(f, mask, scratch, vocab_size)
    return f.select(is_edited, scratch.to_address(), logits.to_address()).as_pointer(F32)


def _copy(f: Function, logits: Pointer, scratch: Pointer, bias: Value, vocab_size: int) -> None:
    with f.when(bias.eq(0)), f.loop(0, wide_row(vocab_size), LANES) as c:
        scratch.put(c, logits.vec(c, LANES))
    with f.when(bias.ne(0)), f.loop(0, wide_row(vocab_size), LANES) as c:
        scratch.put(c, logits.vec(c, LANES) + bias.as_pointer(F32).vec(c, LANES))


def _run_records(f: Function, records: Value, num_records: Value, scratch: Pointer) -> None:
    with f.loop(0, num_records) as n:
        record = records.as_pointer(F32).at(n * EDIT_RECORD_WORDS)
        token = record.of(I32)[0].to(I64)
        add, factor, subtract = (record[word] for word in range(1, EDIT_RECORD_WORDS))
        x = scratch[token] + add
        scratch[token] = f.select(x < 0.0, x * factor, x / factor) - subtract


def _keep_allowed(f: Function, mask: Value, scratch: Pointer, vocab_size: int) -> None:
    lanes = f.table(range(LANES), I32)
    with f.loop(0, wide_row(vocab_size), LANES) as c:
        word = mask.as_pointer(I32)[c >> 5]
        bits = word.splat(LANES) >> (lanes + (c & 31).to(I32).splat(LANES))
        is_allowed = (bits & 1).ne(0)
        scratch.put(c, f.select(is_allowed, scratch.vec(c, LANES), BANNED))
