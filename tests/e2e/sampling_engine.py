"""A tiny float32 engine and the same model in transformers, for tests of sampling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert

SHAPE = TinyLlama(head_size=16)
PROMPTS = ([5, 17, 33, 4, 90], [200, 7], [40, 41, 42, 40, 41, 42, 40, 41], [9])


def build_tiny_engine(
    make_tiny_llama: MakeTinyLlama, directory: Path, shape: TinyLlama = SHAPE
) -> Judge:
    """Build the engine; a step holds less than the longest prompts."""
    model_dir = make_tiny_llama(shape)
    convert(ConvertRequest(model_dir, directory / "checkpoint", dtype="float32"))
    build(
        BuildRequest(
            directory / "checkpoint",
            directory / "engine",
            max_batch_size=6,
            max_input_len=200,
            max_seq_len=256,
            max_num_tokens=32,
            tokens_per_block=16,
        )
    )
    return Judge(directory / "engine", model_dir)


@dataclass
class Judge:
    """Where the engine is, and transformers beside it."""

    engine_dir: Path
    model_dir: Path

    def __post_init__(self) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(self.model_dir).float().eval()

    def generate(self, prompt: list[int], num_tokens: int, **settings: Any) -> list[list[int]]:
        """The tokens of transformers' answers, prompt left out."""
        settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **settings}
        with torch.no_grad():
            found = self.model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=num_tokens,
                **settings,
            )
        return [row[len(prompt) :] for row in found.tolist()]

    def logits(self, tokens: list[int]) -> np.ndarray[Any, Any]:
        """Raw logits of every position."""
        with torch.no_grad():
            found: np.ndarray[Any, Any] = self.model(torch.tensor([tokens])).logits[0].numpy()
        return found
