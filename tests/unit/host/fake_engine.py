"""An engine without a model: a byte tokenizer and answers that a prompt spells out itself.

The answer to `... >hello` is `hello` and then the end token; a prompt without `>` is answered
with x for ever. Run as a program it is a whole host process; a prompt that holds `!die` kills it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from tidemill.base.errors import EngineTargetError
from tidemill.host.__main__ import parse_arguments
from tidemill.host.process import run_host
from tidemill.host.session import Session
from tidemill.runtime.config import DEFAULT_CONFIG, RuntimeConfig
from tidemill.runtime.simulation import FakeExecutor
from tidemill.runtime.step import EngineLimits, StepPlan, StepResult
from tidemill.text.tokenizer import Tokenizer

END_TOKEN = "</s>"
END_ID = 0
LIMITS = EngineLimits(
    max_batch_size=4,
    max_num_tokens=64,
    max_seq_len=4096,
    max_input_len=2048,
    tokens_per_block=16,
    num_blocks=1024,
    vocab_size=257,
)


def write_tokenizer(directory: Path) -> None:
    """Write a tokenizer with one token for each byte, and one that ends answers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([END_TOKEN, *alphabet])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.add_special_tokens([END_TOKEN])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        '{"eos_token": "</s>", "chat_template": "{{ messages[0].content }}>hi"}'
    )


class SpelledExecutor(FakeExecutor):
    """Answers with what stands behind the prompt's last `>`."""

    def __init__(self, tokenizer: Tokenizer, step_seconds: float = 0.0) -> None:
        super().__init__(LIMITS, self._spell)
        self._tokenizer = tokenizer
        self._step_seconds = step_seconds
        self._answers: dict[int, tuple[int, list[int]]] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        time.sleep(self._step_seconds)
        return super().execute(plan)

    def _spell(self, request_id: int, tokens: Sequence[int]) -> int:
        if request_id not in self._answers:
            text = self._tokenizer.decode(tokens)
            if "!die" in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if "!break" in text:
                raise RuntimeError("a wire came loose")
            _, mark, answer = text.rpartition(">")
            spelled = [*self._tokenizer.encode(answer), END_ID] if mark else []
            self._answers[request_id] = len(tokens), spelled
        start, answer_ids = self._answers[request_id]
        place = len(tokens) - start
        return answer_ids[place] if answer_ids else self._tokenizer.encode("x")[0]


def open_session(
    engine_dir: Path, runtime: RuntimeConfig = DEFAULT_CONFIG, step_seconds: float = 0.0
) -> Session:
    """Open a session as a host would; a directory with a file `broken` cannot be opened."""
    if (engine_dir / "broken").exists():
        raise EngineTargetError("built for another machine", expected="avx512", got="abacus")
    if (engine_dir / "silent_death").exists():
        print("last words", file=sys.stderr)
        os._exit(3)
    if (engine_dir / "slow").exists():
        time.sleep(60)
    tokenizer = Tokenizer.from_directory(engine_dir)
    executor = SpelledExecutor(tokenizer, step_seconds)
    return Session(executor, tokenizer, runtime, str(engine_dir))


if __name__ == "__main__":
    engine_dir, session_config, process_config = parse_arguments(sys.argv[1:])
    step_seconds = 0.002
    sys.exit(
        run_host(
            lambda: open_session(engine_dir, session_config.runtime, step_seconds),
            process_config,
        )
    )
