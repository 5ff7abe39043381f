"""Tells by its tensors which of our models a config.pbtxt describes.

In: names of inputs and outputs, and what else a config says. Out: the module that serves it, or
nothing. Used where a model is loaded and where a repository is looked through before.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

BLS_NAME = "tensorrt_llm_bls"
BLS_PARAMETER = "tensorrt_llm_model_name"


@dataclass(frozen=True)
class Outline:
    """What of a config.pbtxt tells its kind."""

    name: str
    inputs: Collection[str]
    outputs: Collection[str]
    has_batch: bool
    parameters: Collection[str]


def find_module(outline: Outline) -> str | None:
    """Return the name of the module whose model has these tensors."""
    inputs = outline.inputs
    has_sampling_params = any(name.startswith("sampling_param_") for name in inputs)
    # Its first releases told no lengths; packed tokens never have a batch dimension.
    is_padded = outline.has_batch or "sequence_length" in outline.outputs
    is_bls = BLS_PARAMETER in outline.parameters or outline.name == BLS_NAME
    rules = (
        ("QUERY" in inputs, "preprocessing_model"),
        ("TOKENS_BATCH" in inputs, "postprocessing_model"),
        ("input_ids" in inputs and is_padded, "tensorrt_llm_model"),
        ("input_ids" in inputs and "input_lengths" in inputs, "tokens_model"),
        (has_sampling_params, "llmapi_model"),
        ("text_input" in inputs and is_bls, "bls_model"),
        ("text_input" in inputs and "text_output" in outline.outputs, "text_model"),
    )
    return next((module for applies, module in rules if applies), None)
