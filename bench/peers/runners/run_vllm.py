"""vLLM's CPU build, offline: continuous batching in this process, tokens in and tokens out."""

from __future__ import annotations

from typing import Any

from bench.peers.runners import runner


class Vllm:
    """One vLLM engine; the first load of a model compiles it, which takes minutes."""

    def __init__(self) -> None:
        import vllm

        self._vllm: Any = vllm

    def load(self, model: str, threads: int, max_requests: int, max_tokens: int) -> None:
        self._llm = self._vllm.LLM(
            model=model,
            dtype="bfloat16",
            max_model_len=4096,
            max_num_seqs=max_requests,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        params = [
            self._vllm.SamplingParams(
                temperature=0.0, max_tokens=length, ignore_eos=True, detokenize=False
            )
            for length in lengths
        ]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(asked, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def version(self) -> str:
        return f"vLLM {self._vllm.__version__}"


if __name__ == "__main__":
    runner.serve(Vllm)
