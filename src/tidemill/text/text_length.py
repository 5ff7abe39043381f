"""Says of a text that it is far too long, without turning all of it into tokens.

In: a text and how many tokens it may have. Out: whether reading on makes sense. Tokenising takes a
second for each megabyte or two, in which whoever does it hears nobody.
"""

from __future__ import annotations

from tidemill.text.tokenizer import Tokenizer

# Of each token that is allowed; few texts have longer ones.
FIRST_LOOK_CHARACTERS = 16


def is_far_longer(tokenizer: Tokenizer, text: str, max_tokens: int) -> bool:
    """Say whether a text is far longer than so many tokens, in time that these would take.

    Twice as many must stand in a part of it: where a part is cut, tokens may differ a little.
    """
    length = FIRST_LOOK_CHARACTERS * max_tokens
    while length < len(text):
        if len(tokenizer.encode(text[:length], add_special_tokens=False)) > 2 * max_tokens:
            return True
        length *= 2
    return False
