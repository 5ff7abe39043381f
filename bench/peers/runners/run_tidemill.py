"""Tidemill itself, the session in this process, streamed and on its cores as in its host.

Tokens in, tokens out, as with the peers.
"""

from __future__ import annotations

from bench.peers.runners import runner


class Tidemill:
    """One session; blocks of earlier prompts are not looked for."""

    def __init__(self) -> None:
        from tidemill.base.version import __version__
        from tidemill.host.config import SessionConfig
        from tidemill.host.messages import GenerateRequest
        from tidemill.host.session import Session
        from tidemill.runtime.config import RuntimeConfig

        self._version, self._request = __version__, GenerateRequest
        self._session_type, self._config = Session, SessionConfig
        self._runtime = RuntimeConfig(enable_block_reuse=False, max_step_ms=0.0)

    def load(self, model: str, threads: int, max_requests: int, max_tokens: int) -> None:
        config = self._config(
            kv_cache_tokens=max_requests * max_tokens,
            num_threads=threads,
            pin_threads=True,
            runtime=self._runtime,
        )
        self._session = self._session_type.open(model, config)

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        tokens: dict[str, list[int]] = {}
        for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            request = self._request(
                request_id=str(number),
                prompt_tokens=prompt,
                max_tokens=length,
                end_id=-1,
                streaming=True,
                detokenize=False,
            )
            tokens[request.request_id] = []
            self._session.submit(request)
        while self._session.has_work:
            for update in self._session.step():
                if update.error is not None:
                    raise update.error.to_exception()
                tokens[update.request_id] += update.token_ids
        return list(tokens.values())

    def version(self) -> str:
        return f"tidemill {self._version}"


if __name__ == "__main__":
    runner.serve(Tidemill)
