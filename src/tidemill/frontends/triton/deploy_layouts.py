"""The models that a deployment consists of, for each style.

In: the wishes of `DeployRequest` and the engine's configuration. Out: for each model its
config.pbtxt as data, the class behind its model.py, and whether the engine lies beside it. The
model that clients call stands last. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tidemill.frontends.triton import classic_tensors as classic
from tidemill.frontends.triton.classic_ensemble import ensemble_steps
from tidemill.frontends.triton.config_pbtxt import ModelConfig
from tidemill.frontends.triton.deploy_request import DeployRequest
from tidemill.frontends.triton.engine_config import EngineConfig
from tidemill.frontends.triton.llmapi_tensors import LLMAPI_INPUTS, LLMAPI_OUTPUTS
from tidemill.frontends.triton.repository import VERSION
from tidemill.frontends.triton.tensors import (
    TEXT_INPUTS,
    TEXT_OUTPUTS,
    TOKENS_INPUTS,
    TOKENS_OUTPUTS,
)

MODEL_PY = '''"""Serves the engine beside this file through Triton's Python backend."""

from tidemill.frontends.triton.{module} import {model} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
MODULE_TO_CLASS = {
    "text_model": "TextModel",
    "tokens_model": "TokensModel",
    "llmapi_model": "LlmapiModel",
    "preprocessing_model": "PreprocessingModel",
    "tensorrt_llm_model": "TensorrtLlmModel",
    "postprocessing_model": "PostprocessingModel",
    "bls_model": "BlsModel",
    "any_model": "TritonPythonModel",
}


@dataclass(frozen=True)
class PlannedModel:
    """One model of a deployment; an ensemble has no module."""

    config: ModelConfig
    module: str | None
    has_engine: bool = False


def model_py(module: str) -> str:
    """Return the text of the model.py that serves one of our models."""
    return MODEL_PY.format(module=module, model=MODULE_TO_CLASS[module])


def plan_models(request: DeployRequest, engine_config: EngineConfig) -> list[PlannedModel]:
    """Return the models of a deployment, the one that clients call last."""
    models = STYLE_TO_LAYOUT[request.style](request, engine_config)
    return [_with_settings(model, request) if model.has_engine else model for model in models]


def _with_settings(model: PlannedModel, request: DeployRequest) -> PlannedModel:
    """Write how the engine is run into the config of its model."""
    parameters = {**model.config.parameters, **request.settings}
    return replace(model, config=replace(model.config, parameters=parameters))


def _text(request: DeployRequest, engine_config: EngineConfig) -> list[PlannedModel]:
    config = ModelConfig(
        name=request.name,
        max_batch_size=_max_batch_size(request, engine_config),
        inputs=TEXT_INPUTS,
        outputs=TEXT_OUTPUTS,
        is_decoupled=request.streams,
        parameters=_echo(request),
    )
    return [PlannedModel(config, "text_model", has_engine=True)]


def _tokens(request: DeployRequest, engine_config: EngineConfig) -> list[PlannedModel]:
    config = ModelConfig(
        name=request.name,
        max_batch_size=0,
        inputs=TOKENS_INPUTS,
        outputs=TOKENS_OUTPUTS,
        is_decoupled=request.streams,
        parameters={"tensor_parallel_size": "1"},
    )
    return [PlannedModel(config, "tokens_model", has_engine=True)]


def _llmapi(request: DeployRequest, engine_config: EngineConfig) -> list[PlannedModel]:
    config = ModelConfig(
        name=request.name,
        max_batch_size=0,
        inputs=LLMAPI_INPUTS,
        outputs=LLMAPI_OUTPUTS,
        is_decoupled=request.streams,
    )
    return [PlannedModel(config, "llmapi_model", has_engine=True)]


def _classic(request: DeployRequest, engine_config: EngineConfig) -> list[PlannedModel]:
    prefix = f"{request.name}_" if request.name else ""
    batch = _max_batch_size(request, engine_config)
    engine = ModelConfig(
        name=f"{prefix}tensorrt_llm",
        max_batch_size=batch,
        inputs=classic.TENSORRT_LLM_INPUTS,
        outputs=classic.TENSORRT_LLM_OUTPUTS,
        is_decoupled=request.streams,
        parameters={"gpt_model_type": "inflight_fused_batching", **_echo(request)},
    )
    bls = ModelConfig(
        name=f"{prefix}tensorrt_llm_bls",
        max_batch_size=batch,
        inputs=classic.BLS_INPUTS,
        outputs=classic.ENSEMBLE_OUTPUTS,
        is_decoupled=request.streams,
        parameters={"tensorrt_llm_model_name": engine.name, "accumulate_tokens": "false"},
    )
    ensemble = ModelConfig(
        name=f"{prefix}ensemble",
        max_batch_size=batch,
        inputs=classic.ENSEMBLE_INPUTS,
        outputs=classic.ENSEMBLE_OUTPUTS,
        steps=ensemble_steps(prefix),
    )
    return [
        PlannedModel(engine, "tensorrt_llm_model", has_engine=True),
        *_text_steps(prefix, batch),
        PlannedModel(bls, "bls_model"),
        PlannedModel(ensemble, None),
    ]


def _text_steps(prefix: str, batch: int) -> list[PlannedModel]:
    """Return the models before and after the engine; each answers once."""
    # A path that counts from the repository, so that it can be moved.
    tokenizer = {"tokenizer_dir": f"{prefix}tensorrt_llm/{VERSION}"}
    before = ModelConfig(
        name=f"{prefix}preprocessing",
        max_batch_size=batch,
        inputs=classic.PREPROCESSING_INPUTS,
        outputs=classic.PREPROCESSING_OUTPUTS,
        parameters={**tokenizer, "add_special_tokens": "true"},
    )
    after = ModelConfig(
        name=f"{prefix}postprocessing",
        max_batch_size=batch,
        inputs=classic.POSTPROCESSING_INPUTS,
        outputs=classic.POSTPROCESSING_OUTPUTS,
        parameters={**tokenizer, "skip_special_tokens": "true"},
    )
    return [
        PlannedModel(before, "preprocessing_model"),
        PlannedModel(after, "postprocessing_model"),
    ]


def _max_batch_size(request: DeployRequest, engine_config: EngineConfig) -> int:
    if request.max_batch_size is not None:
        return request.max_batch_size
    return engine_config.build_config.max_batch_size


def _echo(request: DeployRequest) -> dict[str, str]:
    return {"exclude_input_in_output": str(request.exclude_input_in_output).lower()}


Layout = Callable[[DeployRequest, EngineConfig], list[PlannedModel]]
STYLE_TO_LAYOUT: dict[str, Layout] = {
    "text": _text,
    "tokens": _tokens,
    "inflight_batcher_llm": _classic,
    "llmapi": _llmapi,
}
