"""TensorRT-LLM's examples/run.py, as `tidemill run`.

As there: several words may follow --input_text, --stop_words and --bad_words, --top_k is 1 (greedy)
unless it is given, and --top_p 0.0 means no limit.
"""

import sys

from tidemill.frontends.cli.main import main

SEVERAL = ("--input_text", "--stop_words", "--bad_words")


def spell_out(arguments: list[str]) -> list[str]:
    """Return the arguments as `tidemill run` takes them: one value a flag, defaults written out."""
    pairs: list[list[str]] = []
    for word in arguments:
        if word.startswith("--"):
            name, *value = word.split("=", 1)
            pairs.append([name.replace("-", "_").replace("__", "--", 1), *value])
        elif pairs and pairs[-1][0] in SEVERAL and len(pairs[-1]) == 2:
            pairs.append([pairs[-1][0], word])
        else:
            pairs = pairs or [[]]
            pairs[-1].append(word)
    kept = [pair for pair in pairs if pair not in (["--top_p", "0.0"], ["--top_p", "0"])]
    if not any(pair[0] == "--top_k" for pair in kept if pair):
        kept.append(["--top_k", "1"])
    return [word for pair in kept for word in pair]


if __name__ == "__main__":
    main(["run", *spell_out(sys.argv[1:])])
