"""OpenVINO GenAI: its continuous batching pipeline, tokens in and tokens out."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.peers.runners import runner

CACHE_GB = 2


class OpenVino:
    """One pipeline; prompts are split and fused with decoding steps."""

    def __init__(self) -> None:
        import openvino
        import openvino_genai

        self._ov: Any = openvino
        self._genai: Any = openvino_genai

    def load(self, model: str, threads: int, max_requests: int, max_tokens: int) -> None:
        scheduler = self._genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_seqs = max_requests
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = True
        properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16"}
        self._pipeline = self._genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        handles = []
        for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            config = self._genai.GenerationConfig()
            config.max_new_tokens = length
            config.ignore_eos = True
            config.do_sample = False
            tensor = self._ov.Tensor(np.array([prompt], np.int64))
            handles.append(self._pipeline.add_request(number, tensor, config))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return [list(handle.read_all()[0].generated_ids) for handle in handles]

    def version(self) -> str:
        return f"OpenVINO GenAI {self._genai.__version__}"


if __name__ == "__main__":
    runner.serve(OpenVino)
