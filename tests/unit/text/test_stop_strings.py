"""Stop strings are found across any split of the text, exactly as in the whole text."""

from __future__ import annotations

import random

import pytest

from tidemill.text.stop_strings import StopStringMatcher


def brute_force(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Grow the text by one character at a time and look for any stop string at its end."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def feed(matcher: StopStringMatcher, pieces: list[str]) -> tuple[str, str | None]:
    sent = ""
    for piece in pieces:
        emitted, matched = matcher.push(piece)
        sent += emitted
        if matched is not None:
            assert matcher.push("more") == ("", matched)
            assert matcher.finish() == ""
            return sent, matched
    return sent + matcher.finish(), None


@pytest.mark.parametrize("seed", range(300))
def test_random_splits_equal_brute_force_over_the_whole_text(seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choices("ab\U0001f600", k=chance.choice([0, 1, 13, 61])))
    stops = ["".join(chance.choices("ab\U0001f600", k=chance.randint(1, 5)))
             for _ in range(chance.choice([0, 1, 2, 4]))]  # fmt: skip
    cuts = sorted(chance.randrange(len(text) + 1) for _ in range(chance.choice([0, 3, 31])))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for include in (False, True):
        result = feed(StopStringMatcher(stops, include), pieces)
        assert result == brute_force(text, stops, include), f"seed {seed}, stops {stops}"


def test_only_a_possible_beginning_is_held_back() -> None:
    matcher = StopStringMatcher(["###", "</end>"])
    assert matcher.push("one #") == ("one ", None)
    assert matcher.push("# two") == ("## two", None)
    assert matcher.push(" </e") == (" ", None)
    assert matcher.push("nd") == ("", None)
    assert matcher.push("> rest") == ("", "</end>")


def test_held_text_is_returned_at_the_end() -> None:
    matcher = StopStringMatcher(["stop"])
    assert matcher.push("do not sto") == ("do not ", None)
    assert matcher.finish() == "sto"
    assert matcher.finish() == ""


def test_without_stop_strings_text_passes_through() -> None:
    matcher = StopStringMatcher([])
    assert matcher.push("anything") == ("anything", None)
    assert matcher.finish() == ""


def test_of_stop_strings_that_end_together_the_longest_is_reported() -> None:
    assert StopStringMatcher(["b", "ab"]).push("xab") == ("x", "ab")
