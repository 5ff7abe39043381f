"""Reading of the JSON files beside the weights, with errors that name the file.

In: a path. Out: an object as a dict. Knows nothing of what the keys mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidemill.base.errors import CheckpointError
from tidemill.base.json_text import parse_json
from tidemill.checkpoint.file_bytes import FileBytes


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises: CheckpointError when the file is missing or is not such JSON.
    """
    file = FileBytes(path)
    try:
        value = parse_json(file.read_all())
    except ValueError as error:
        raise CheckpointError(
            "file is not valid JSON",
            where=str(path),
            expected="a JSON object",
            got=str(error),
            hint="finish the download, or take the file from its source again",
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            "file holds no JSON object",
            where=str(path),
            expected="a JSON object",
            got=type(value).__name__,
            hint="take the file from its source again",
        )
    return value
