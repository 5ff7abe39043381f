"""llama.cpp through llama-cpp-python's plain bindings, with in-flight batching of its own.

One context for a single sequence and one for many, each with a cache of its own per sequence. A
step decodes one token of every running sequence and fills the rest of the batch with prompts, as
llama-server does; the draw is NumPy's argmax over the logits that llama.cpp leaves.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np

from bench.peers.runners import runner

N_BATCH, N_UBATCH = 2048, 512
FLASH_ATTENTION = 1


@dataclass
class Sequence:
    """One request: what is still to be read, and what was drawn."""

    slot: int
    prompt: list[int]
    length: int
    num_read: int = 0
    tokens: list[int] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return len(self.tokens) == self.length


class Batch:
    """A llama_batch over NumPy arrays."""

    def __init__(self) -> None:
        self.token = np.zeros(N_BATCH, np.int32)
        self.pos = np.zeros(N_BATCH, np.int32)
        self.slot = np.zeros(N_BATCH, np.int32)
        self.wants = np.zeros(N_BATCH, np.int8)
        self._one = np.ones(N_BATCH, np.int32)
        self._slots = self.slot.ctypes.data + 4 * np.arange(N_BATCH, dtype=np.uint64)
        self.count = 0
        self.outputs: list[tuple[int, Sequence]] = []

    def clear(self) -> None:
        self.count, self.outputs = 0, []

    def add(self, sequence: Sequence, tokens: list[int], start: int, draws: bool) -> None:
        at = slice(self.count, self.count + len(tokens))
        self.token[at] = tokens
        self.pos[at] = np.arange(start, start + len(tokens))
        self.slot[at] = sequence.slot
        self.wants[at] = 0
        self.count += len(tokens)
        if draws:
            self.wants[self.count - 1] = 1
            self.outputs.append((self.count - 1, sequence))

    def native(self) -> Any:
        def pointer(array: Any, kind: Any) -> Any:
            return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

        return llama_cpp.llama_batch(
            n_tokens=self.count,
            token=pointer(self.token, ctypes.c_int32),
            embd=None,
            pos=pointer(self.pos, ctypes.c_int32),
            n_seq_id=pointer(self._one, ctypes.c_int32),
            seq_id=pointer(self._slots, ctypes.POINTER(ctypes.c_int32)),
            logits=pointer(self.wants, ctypes.c_int8),
        )


class LlamaCpp:
    """Both contexts of one model."""

    def load(self, model: str, threads: int, max_requests: int, max_tokens: int) -> None:
        llama_cpp.llama_log_set(_SILENT, None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), params)
        assert self._model, f"llama.cpp cannot load {model}"
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self._batch, self._threads = Batch(), threads
        self._shape = max_requests, max_requests * max_tokens
        self._single = self._context(1, max(4096, max_tokens))
        self._many: Any = None

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        if len(prompts) > 1 and self._many is None:
            self._many = self._context(*self._shape)
        context = self._single if len(prompts) == 1 else self._many
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        sequences = [
            Sequence(slot, prompt, length)
            for slot, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
        ]
        waiting, running = deque(sequences), list[Sequence]()
        while waiting or running:
            self._fill(waiting, running)
            assert llama_cpp.llama_decode(context, self._batch.native()) == 0
            for index, sequence in self._batch.outputs:
                logits = llama_cpp.llama_get_logits_ith(context, index)
                row = np.ctypeslib.as_array(logits, shape=(self._vocab_size,))
                sequence.tokens.append(int(row.argmax()))
            running = [s for _, s in self._batch.outputs if not s.is_done]
        return [sequence.tokens for sequence in sequences]

    def version(self) -> str:
        return f"llama-cpp-python {llama_cpp.__version__}"

    def _fill(self, waiting: deque[Sequence], running: list[Sequence]) -> None:
        batch = self._batch
        batch.clear()
        for sequence in running:
            start = len(sequence.prompt) + len(sequence.tokens) - 1
            batch.add(sequence, sequence.tokens[-1:], start, True)
        while waiting and batch.count < N_BATCH:
            sequence = waiting[0]
            start = sequence.num_read
            stop = min(len(sequence.prompt), start + N_BATCH - batch.count)
            is_whole = stop == len(sequence.prompt)
            batch.add(sequence, sequence.prompt[start:stop], start, is_whole)
            sequence.num_read = stop
            if is_whole:
                waiting.popleft()

    def _context(self, num_sequences: int, num_tokens: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = num_tokens, num_sequences
        params.n_batch, params.n_ubatch = N_BATCH, N_UBATCH
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = FLASH_ATTENTION
        params.kv_unified = False
        params.no_perf = True
        context = llama_cpp.llama_init_from_model(self._model, params)
        assert context, "llama.cpp cannot make a context"
        return context


def _say_nothing(level: int, text: bytes, user_data: object) -> None:
    pass


_SILENT = llama_cpp.llama_log_callback(_say_nothing)


if __name__ == "__main__":
    runner.serve(LlamaCpp)
