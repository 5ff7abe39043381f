"""Where a run's prompts come from: the command line, a file of texts, a file of tokens.

Files are those of TensorRT-LLM's run.py: .csv and .npy hold tokens, a row for each prompt (a row
of an array is padded with the end token, which is cut off); any other is text, a line for each.
"""

from __future__ import annotations

import csv
from pathlib import Path

from tidemill.base.errors import ConfigError

Prompt = str | list[int]


def read_prompts(texts: list[str], file: Path | None, end_id: int | None = None) -> list[Prompt]:
    """Return all prompts, those of the command line first.

    Raises: ConfigError when there is none or the file cannot be read.
    """
    prompts: list[Prompt] = list(texts)
    if file is not None:
        try:
            prompts += _read_file(file, end_id)
        except (OSError, EOFError, ValueError, csv.Error) as error:
            raise ConfigError(
                "the file of prompts cannot be read",
                where=str(file),
                expected="one prompt on each line: text, or token ids in .csv and .npy",
                got=str(error) or type(error).__name__,
                hint="--input_text gives a prompt on the command line",
            ) from error
    if not prompts:
        raise ConfigError(
            "there is nothing to answer",
            where="command line of run",
            expected="--input_text, --input_file or --chat",
            got="no prompt",
            hint='--input_text "What is gravity?"',
        )
    return prompts


def _read_file(file: Path, end_id: int | None) -> list[str] | list[list[int]]:
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as lines:
            return [[int(cell) for cell in row] for row in csv.reader(lines) if row]
    if file.suffix == ".npy":
        return _read_array(file, end_id)
    return [line for line in file.read_text("utf-8").splitlines() if line.strip()]


def _read_array(file: Path, end_id: int | None) -> list[list[int]]:
    import numpy as np

    rows = np.load(file, allow_pickle=False)
    if not isinstance(rows, np.ndarray) or rows.ndim not in (1, 2) or rows.dtype.kind not in "iu":
        raise ValueError("not an array of whole numbers with one or two dimensions")
    found: list[list[int]] = np.atleast_2d(rows).tolist()
    for row in found:
        while len(row) > 1 and row[-1] == end_id:
            row.pop()
    return found
