"""TensorRT-LLM's examples/run.py, as `tidemill run`; several texts may follow --input_text."""

import sys

from tidemill.frontends.cli.main import main


def repeat_input_text(arguments: list[str]) -> list[str]:
    """Turn `--input_text a b` into `--input_text a --input_text b`."""
    expanded: list[str] = []
    is_text = False
    for word in arguments:
        if word.startswith("-"):
            is_text = word.replace("-", "_") == "__input_text"
            expanded += [] if is_text else [word]
        else:
            expanded += ["--input_text", word] if is_text else [word]
    return expanded


if __name__ == "__main__":
    main(["run", *repeat_input_text(sys.argv[1:])])
