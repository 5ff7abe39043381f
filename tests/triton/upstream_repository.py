"""Repositories as TensorRT-LLM's own releases write them: templates, filled as its users do.

Made from what `deploy` writes by taking away what is ours and writing what is upstream's: its
batcher blocks, its parameters with most placeholders unfilled, its model.py files (which cannot
run here and say so), the types and names of a generation. Facts from tensorrtllm_backend's
all_models/inflight_batcher_llm; no text of it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tidemill.frontends.triton.deploy import DeployRequest, deploy
from tidemill.frontends.triton.deploy_request import CLASSIC
from tidemill.frontends.triton.template import fill_template
from tidemill.frontends.triton.user_config import read_user_config

FOREIGN_IMPORTS = {
    "preprocessing": "from transformers import AutoTokenizer",
    "postprocessing": "from transformers import AutoTokenizer",
    "tensorrt_llm_bls": "from lib.triton_decoder import TritonDecoder",
}
OURS = frozenset({"prompt_text", "output_text", "ENGINE_TEXT"})
TEXT_MODELS = ("ensemble", "tensorrt_llm_bls")
# What the template of tensorrt_llm leaves to its users, who fill three or four of these.
LEFT_OPEN = """
max_beam_width encoder_engine_dir max_tokens_in_paged_kv_cache max_attention_window_size
sink_token_length batch_scheduler_policy kv_cache_free_gpu_mem_fraction
cross_kv_cache_fraction kv_cache_host_memory_bytes kv_cache_onboard_blocks
enable_trt_overlap exclude_input_in_output cancellation_check_period_ms
stats_check_period_ms iter_stats_max_iterations request_stats_max_iterations
enable_kv_cache_reuse normalize_log_probs enable_chunked_context gpu_device_ids
participant_ids num_nodes lora_cache_optimal_adapter_size lora_cache_max_adapter_size
lora_cache_gpu_memory_fraction lora_cache_host_memory_bytes lora_prefetch_dir decoding_mode
lookahead_window_size lookahead_ngram_size lookahead_verification_set_size medusa_choices
eagle_choices gpu_weights_percent enable_context_fmha_fp32_acc multi_block_mode
cuda_graph_mode cuda_graph_cache_size speculative_decoding_fast_logits tokenizer_dir
guided_decoding_backend xgrammar_tokenizer_info_path
"""
BATCHER = """
dynamic_batching {
  preferred_batch_size: [ ${triton_max_batch_size} ]
  max_queue_delay_microseconds: ${max_queue_delay_microseconds}
  default_queue_policy: { max_queue_size: ${max_queue_size} }
}
"""


LOGITS = frozenset({"context_logits", "generation_logits", "draft_logits"})
UNSIGNED = frozenset(
    {"request_output_len", "REQUEST_OUTPUT_LEN", "max_tokens", "min_length", "beam_width"}
    | {"top_k", "runtime_top_k"}
)


@dataclass(frozen=True)
class Generation:
    """What the releases of one time have in common; `lacks` are tensors they do not have."""

    prefix: str
    lacks: frozenset[str]
    backend: str
    logits_type: str
    is_decoupled: bool
    unsigned: frozenset[str] = frozenset()


LATEST = Generation(
    prefix="",
    lacks=OURS | {"min_length", "random_seed"},
    backend="tensorrtllm",
    logits_type="TYPE_FP16",
    is_decoupled=True,
)
FIRST = Generation(
    prefix="first_",
    lacks=OURS
    | {"min_tokens", "seed", "num_return_sequences", "sequence_length", "SEQUENCE_LENGTH"}
    | {"exclude_input_in_output", "return_perf_metrics"}
    | {"return_num_input_tokens", "return_num_output_tokens"},
    backend="inflight_batcher_llm",
    logits_type="TYPE_FP32",
    is_decoupled=False,
    unsigned=UNSIGNED,
)


def write_upstreams_repository(repository: Path, engine: Path, generation: Generation) -> None:
    """Lay out the models of a generation, templates first, then filled."""
    wish = DeployRequest(engine, repository, generation.prefix.rstrip("_"), CLASSIC)
    for model_dir in deploy(wish).model_dirs:
        model = model_dir.name.removeprefix(generation.prefix)
        path = model_dir / "config.pbtxt"
        config = read_user_config(path)
        make_upstreams(config, model, generation)
        path.write_text(
            text_format.MessageToString(config) + ("" if model in TEXT_MODELS else BATCHER)
        )
        fill(path, engine)
        if model in FOREIGN_IMPORTS:
            (model_dir / "1" / "model.py").write_text(f"{FOREIGN_IMPORTS[model]}\n1 / 0\n")
        if model == "tensorrt_llm":
            shutil.rmtree(model_dir / "1")
            (model_dir / "1").mkdir()


def fill(path: Path, engine: Path) -> None:
    """Fill a template's placeholders with what users fill."""
    filled = {
        "triton_max_batch_size": "4",
        "max_queue_delay_microseconds": "0",
        "max_queue_size": "64",
        "engine_dir": str(engine),
        "tokenizer_dir": str(engine),
    }
    text = path.read_text()
    given = {name: value for name, value in filled.items() if f"${{{name}}}" in text}
    path.write_text(fill_template(path, given))


def make_upstreams(config: Any, model: str, generation: Generation) -> None:
    """Change what `deploy` wrote into what the generation has."""
    lacks = generation.lacks | ({"stop"} if model in TEXT_MODELS else frozenset())
    for tensors in (config.input, config.output):
        kept = [tensor for tensor in tensors if tensor.name not in lacks]
        del tensors[:]
        tensors.extend(kept)
    for tensor in (*config.input, *config.output):
        if tensor.name in generation.unsigned:
            tensor.data_type = model_config_pb2.TYPE_UINT32
        if tensor.name in LOGITS:
            tensor.data_type = model_config_pb2.DataType.Value(generation.logits_type)
    if model == "ensemble":
        make_upstreams_ensemble(config, lacks)
    else:
        streams = generation.is_decoupled and "processing" not in model
        config.model_transaction_policy.decoupled = streams
    if model == "tensorrt_llm":
        config.backend = generation.backend
        for name in LEFT_OPEN.split():
            config.parameters[name].string_value = f"${{{name}}}"
        config.parameters["gpt_model_path"].string_value = "${engine_dir}"
    elif "processing" in model:
        config.parameters["tokenizer_dir"].string_value = "${tokenizer_dir}"


def make_upstreams_ensemble(config: Any, lacks: frozenset[str]) -> None:
    """Take away the maps of tensors that are not there, and declare one output twice."""
    for step in config.ensemble_scheduling.step:
        for names in (step.input_map, step.output_map):
            for own in [own for own in names if {own, names[own]} & lacks]:
                del names[own]
    twice = [each for each in config.output if each.name == "kv_cache_alloc_total_blocks"]
    config.output.extend(twice)
