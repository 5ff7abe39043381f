"""Thirty-two prompts for the sample model: prose, lists, code, numbers, other scripts, nonsense.

Lengths run from one token to about a hundred and fifty, so that steps are uneven.
"""

from __future__ import annotations

from pathlib import Path

from tidemill.text.tokenizer import Tokenizer

TEXTS = (
    "The",
    "Hello",
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "Water boils at",
    "Q: What is the largest planet in the solar system?\nA:",
    "def fibonacci(n):\n    ",
    "import numpy as np\n\nx = np.arange(10)\nprint(",
    "1, 1, 2, 3, 5, 8, 13,",
    "The three primary colours are red,",
    "In 1969, Neil Armstrong",
    "To be, or not to be, that is",
    "A recipe for bread:\n1. Mix flour and water.\n2.",
    '{"name": "Ada", "born": 1815, "known_for": "',
    "SELECT name, age FROM people WHERE",
    "Le chat est assis sur",
    "Der schnelle braune Fuchs springt",
    "La vida es",
    "\u6771\u4eac\u306f",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043a\u0430\u043a",
    "\U0001f600 \U0001f680",
    "    ",
    "\n\n\n",
    "zxqv wkrj plmf 0x7f3a",
    "The tide mill stands where the river meets the sea. At high water the gates close and hold "
    "the pond; at low water the miller opens the sluice, and",
    "Photosynthesis is the process by which plants turn light into chemical energy. It takes "
    "place in the chloroplasts, where",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nName three "
    "rivers in Europe.<|im_end|>\n<|im_start|>assistant\n",
    "Translate to French: The weather is fine today, and we are going to walk along the river.\n",
    "Dear Sir or Madam,\n\nI am writing to",
    "Chapter 1\n\nIt was the best of times, it was the worst of times, it was the age of wisdom, "
    "it was the age of foolishness, it was the epoch of belief, it was the epoch of incredulity, "
    "it was the season of Light, it was the season of Darkness, it was the spring of hope, it was "
    "the winter of despair, we had everything before us, we had nothing before us,",
    "| City | Country |\n|---|---|\n| Paris | France |\n| Rome |",
)
assert len(TEXTS) == 32


def prompt_tokens(engine_dir: Path) -> list[list[int]]:
    """The prompts as tokens of an engine's tokenizer."""
    tokenizer = Tokenizer.from_directory(engine_dir)
    return [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
