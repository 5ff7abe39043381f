"""TensorRT-LLM's tools/fill_template.py: fills the placeholders of a config.pbtxt."""

import argparse
import sys
from pathlib import Path

from tidemill.base.errors import ConfigError, TidemillError
from tidemill.frontends.triton.template import fill_template, parse_substitutions


def main() -> None:
    """Print the filled template, or write it back with -i."""
    parser = argparse.ArgumentParser("fill_template.py")
    parser.add_argument("file_path", type=Path)
    parser.add_argument("substitutions", help="name:value,name:value; a comma in a value is \\,")
    parser.add_argument("-i", "--in_place", action="store_true")
    given = parser.parse_args()
    try:
        text = fill_template(given.file_path, parse_substitutions(given.substitutions))
        if given.in_place:
            given.file_path.write_text(text, encoding="utf-8")
        else:
            print(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the template cannot be filled",
            where=str(given.file_path),
            expected="a text file that can be read, and written with -i",
            got=str(error),
            hint="give the config.pbtxt of a model",
        ) from error


if __name__ == "__main__":
    try:
        main()
    except TidemillError as error:
        sys.exit(f"error: {error}")
