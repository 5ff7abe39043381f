"""Merges of a SentencePiece BPE vocabulary, which keeps only a score for each piece.

In: piece to score. Out: merge rules, first the ones to apply first. SentencePiece joins whichever
neighbours give the piece of the highest score; a BPE model that applies these rules in order does
the same. Source: transformers convert_slow_tokenizer.generate_merges.
"""

from __future__ import annotations

from collections.abc import Mapping


def merges_from_scores(piece_to_score: Mapping[str, float]) -> list[list[str]]:
    """List every way to make a piece of two others, the highest score first.

    Pieces of equal score: the longer left half first, then the longer right half; what is still
    equal keeps the vocabulary's order, then that of the halves.
    """
    place = {piece: index for index, piece in enumerate(piece_to_score)}
    found: list[tuple[float, str, str]] = []
    for piece, score in piece_to_score.items():
        halves = [
            (left, right)
            for border in range(1, len(piece))
            if (left := piece[:border]) in place and (right := piece[border:]) in place
        ]
        halves.sort(key=lambda pair: (place[pair[0]], place[pair[1]]))
        found += [(score, left, right) for left, right in halves]
    # A reversed sort is stable too: equals stay in the order in which they were found.
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [[left, right] for _, left, right in found]
