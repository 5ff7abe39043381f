"""The depth of JSON bodies against a walk over every byte."""

from __future__ import annotations

import json
import random
import time

import pytest

from tidemill.frontends.triton.json_bounds import (
    FULLER,
    LONGER,
    MAX_VALUES,
    PIECE_BYTES,
    find_excess,
)


def depth_by_walking(body: bytes) -> int:
    """Return how deep a well-formed body nests."""
    depth = deepest = 0
    is_in_string = is_escaped = False
    for byte in body.decode():
        if is_in_string:
            if is_escaped:
                is_escaped = False
            elif byte == "\\":
                is_escaped = True
            elif byte == '"':
                is_in_string = False
        elif byte == '"':
            is_in_string = True
        elif byte in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in "]}":
            depth -= 1
    return deepest


def is_too_deep(body: bytes, max_depth: int) -> bool:
    return find_excess(body, max_depth) is not None


def random_value(rng: random.Random, levels: int) -> object:
    if levels == 0 or rng.random() < 0.2:
        return rng.choice(['a[[{"\\', "", "\\\\", '"', 3, None, True, "]}", "\u20ac[", "\n{"])
    if rng.random() < 0.5:
        return [random_value(rng, levels - 1) for _ in range(rng.randrange(4))]
    return {f"k[{i}": random_value(rng, levels - 1) for i in range(rng.randrange(4))}


def test_random_bodies_are_judged_as_a_walk_judges_them() -> None:
    seed = 20261124
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(2000):
        body = json.dumps(
            random_value(rng, rng.randrange(9)), ensure_ascii=rng.random() < 0.5
        ).encode()
        depth = depth_by_walking(body)
        for bound in (max(0, depth - 1), depth, depth + 1):
            assert is_too_deep(body, bound) == (depth > bound), (body, bound)


@pytest.mark.parametrize("text", ["[" * 65, "{" * 65, '{"a":' * 65, "]" * 65 + "[" * 65])
def test_brackets_that_do_not_match_are_refused(text: str) -> None:
    assert is_too_deep(text.encode(), 64)


def test_open_string_hides_nothing() -> None:
    assert is_too_deep(b'{"a": "' + b"[" * 100, 64)
    assert is_too_deep(b'"\\"' + b"[" * 100, 64)


@pytest.mark.parametrize(
    "body",
    [b"[" * 2**22, b"[]" * 2**21, b"[{}]" * 2**20, b'"[' * 2**21, b'"\\' * 2**21, b"[[" * 2**20],
    ids=["open", "flat", "pairs", "quotes", "escapes", "double"],
)
def test_four_mebibytes_meant_to_be_slow_take_less_than_a_second_of_processor_time(
    body: bytes,
) -> None:
    start = time.process_time()
    is_too_deep(body, 64)
    assert time.process_time() - start < 1.0


def test_members_are_counted_outside_of_strings() -> None:
    body = json.dumps({f"k{i}": ":" * 99 for i in range(17)}).encode()
    assert find_excess(body, 64, max_members=17) is None
    assert find_excess(body, 64, max_members=16) == LONGER.format(16)


@pytest.mark.parametrize("cut", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1])
def test_strings_and_depth_go_on_from_piece_to_piece(cut: int) -> None:
    body = b'["' + b"a" * (cut - 2) + b'[[[",' + b"[" * 3 + b"]" * 3 + b"]"
    assert find_excess(body, 4) is None
    assert is_too_deep(body, 3)


def test_values_are_counted_however_they_are_nested() -> None:
    assert find_excess(b"[" + b"1," * (MAX_VALUES - 2) + b"1]", 64) is None
    for body in (b"1," * MAX_VALUES + b"1", b"[]," * (MAX_VALUES // 2) + b"1"):
        assert find_excess(b"[" + body + b"]", 64) == FULLER.format(MAX_VALUES)
