"""The flags of trtllm-build that this builder does not act on, and what it says of each.

Data only. The flags that act (--checkpoint_dir, --max_batch_size and the other limits) are
declared by the build verb. Source: TensorRT-LLM 0.17 to 1.0, commands/build.py, plugin/plugin.py.
"""

from __future__ import annotations

from tidemill.frontends.cli.foreign_flags import ForeignFlag, Kind

TOOL = "build"

_DTYPE = ("auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable")
_ON_OFF = ("enable", "disable")

_OWN_KERNELS = "kernels are generated for this machine, there are no plugins to choose"
_PACKED = "tokens are always packed, there is no padding"
_FUSION = "fusions are passes of the builder and always on"
_NO_TIMING = "only --tune times kernels, and it keeps no cache of that"
_LOGITS = "logits need no flag at build: a request asks for them"
_LLAMA_ONLY = "for architectures that this version does not build"
_RUN_TIME = "the scheduler decides this at run time"
_ONE_BUILD = "the builder makes one engine that serves every batch size"

PLUGIN_FLAGS = (
    ForeignFlag("--gemm_plugin", _DTYPE, _OWN_KERNELS),
    ForeignFlag("--gpt_attention_plugin", _DTYPE, "attention is always paged and generated"),
    ForeignFlag("--bert_attention_plugin", _DTYPE, _LLAMA_ONLY),
    ForeignFlag("--gemm_swiglu_plugin", ("fp8", "disable"), _FUSION),
    ForeignFlag("--fp8_rowwise_gemm_plugin", _DTYPE, _OWN_KERNELS),
    ForeignFlag("--low_latency_gemm_plugin", ("fp8", "disable"), _OWN_KERNELS),
    ForeignFlag("--low_latency_gemm_swiglu_plugin", ("fp8", "disable"), _OWN_KERNELS),
    ForeignFlag("--gemm_allreduce_plugin", ("float16", "bfloat16", "disable"), _FUSION),
    ForeignFlag("--qserve_gemm_plugin", _DTYPE, _OWN_KERNELS),
    ForeignFlag("--identity_plugin", _DTYPE, _OWN_KERNELS),
    ForeignFlag("--nccl_plugin", _DTYPE, "ranks on CPUs do not use NCCL"),
    ForeignFlag("--moe_plugin", _DTYPE, _LLAMA_ONLY),
    ForeignFlag("--mamba_conv1d_plugin", _DTYPE, _LLAMA_ONLY),
    ForeignFlag("--lora_plugin", _DTYPE, "LoRA adapters", is_refused=True, neutral=("disable",)),
    ForeignFlag("--dora_plugin", _ON_OFF, "DoRA adapters", is_refused=True, neutral=("disable",)),
    ForeignFlag("--weight_only_quant_matmul_plugin", _DTYPE, _OWN_KERNELS),
    ForeignFlag("--weight_only_groupwise_quant_matmul_plugin", _DTYPE, _OWN_KERNELS),
    ForeignFlag("--smooth_quant_plugins", _ON_OFF, _OWN_KERNELS),
    ForeignFlag("--smooth_quant_gemm_plugin", _DTYPE, _OWN_KERNELS),
    ForeignFlag("--layernorm_quantization_plugin", _DTYPE, _OWN_KERNELS),
    ForeignFlag("--rmsnorm_quantization_plugin", _DTYPE, _OWN_KERNELS),
    ForeignFlag("--quantize_per_token_plugin", _ON_OFF, _OWN_KERNELS),
    ForeignFlag("--quantize_tensor_plugin", _ON_OFF, _OWN_KERNELS),
    ForeignFlag("--context_fmha", _ON_OFF, "context and generation share one attention kernel"),
    ForeignFlag("--context_fmha_fp32_acc", _ON_OFF, "attention always accumulates in float32"),
    ForeignFlag("--bert_context_fmha_fp32_acc", _ON_OFF, _LLAMA_ONLY),
    ForeignFlag("--remove_input_padding", _ON_OFF, _PACKED),
    ForeignFlag("--use_paged_context_fmha", _ON_OFF, "the KV cache is always paged"),
    ForeignFlag("--use_fp8_context_fmha", _ON_OFF, "attention computes in 16 or 32 bits"),
    ForeignFlag("--fuse_fp4_quant", _ON_OFF, _FUSION),
    ForeignFlag("--multiple_profiles", _ON_OFF, _ONE_BUILD),
    ForeignFlag("--paged_state", _ON_OFF, _LLAMA_ONLY),
    ForeignFlag("--reduce_fusion", _ON_OFF, _FUSION),
    ForeignFlag("--user_buffer", _ON_OFF, "buffers are placed by the memory plan"),
    ForeignFlag("--norm_quant_fusion", _ON_OFF, _FUSION),
    ForeignFlag("--use_fused_mlp", _ON_OFF, _FUSION),
    ForeignFlag("--pp_reduce_scatter", _ON_OFF, _LLAMA_ONLY),
    ForeignFlag("--manage_weights", _ON_OFF, "weights are mapped from the engine file"),
    ForeignFlag(
        "--streamingllm", _ON_OFF, "attention sinks", is_refused=True, neutral=("disable",)
    ),
    ForeignFlag("--paged_kv_cache", _ON_OFF, "the KV cache is always paged"),
)

BUILD_FLAGS = (
    ForeignFlag("--model_config", Kind.TEXT, "building without a checkpoint", is_refused=True),
    ForeignFlag("--build_config", Kind.TEXT, "limits from a file; name them", is_refused=True),
    ForeignFlag("--model_cls_file", Kind.TEXT, "model classes from a file", is_refused=True),
    ForeignFlag("--model_cls_name", Kind.TEXT, "model classes from a file", is_refused=True),
    ForeignFlag("--input_timing_cache", Kind.TEXT, _NO_TIMING),
    ForeignFlag("--output_timing_cache", Kind.TEXT, _NO_TIMING),
    ForeignFlag(
        "--profiling_verbosity",
        ("layer_names_only", "detailed", "none"),
        "'tidemill inspect' shows every op",
    ),
    ForeignFlag(
        "--log_level",
        ("internal_error", "error", "warning", "info", "verbose", "debug", "trace"),
        "TIDEMILL_DEBUG=0..5 chooses what is shown",
    ),
    ForeignFlag("--enable_debug_output", Kind.SWITCH, "'tidemill verify' compares every layer"),
    ForeignFlag("--visualize_network", Kind.SWITCH, "'tidemill inspect' prints the graph"),
    ForeignFlag("--dry_run", Kind.SWITCH, "a build that writes nothing", is_refused=True),
    ForeignFlag("--monitor_memory", Kind.SWITCH, "the memory plan is in 'tidemill inspect'"),
    ForeignFlag("--fast_build", Kind.SWITCH, "builds are fast, weights are only packed"),
    ForeignFlag("--strip_plan", Kind.SWITCH, "engines without weights", is_refused=True),
    ForeignFlag("--weight_sparsity", Kind.SWITCH, "weights are computed densely, same result"),
    ForeignFlag("--weight_streaming", Kind.SWITCH, "weights are mapped and paged by the system"),
    ForeignFlag("--opt_num_tokens", Kind.INTEGER, _ONE_BUILD),
    ForeignFlag("--opt_batch_size", Kind.INTEGER, _ONE_BUILD),
    ForeignFlag("--max_encoder_input_len", Kind.INTEGER, "decoder-only models have no encoder"),
    ForeignFlag(
        "--max_prompt_embedding_table_size",
        Kind.INTEGER,
        "prompt tables",
        is_refused=True,
        neutral=("0",),
        aliases=("--max_multimodal_len",),
    ),
    ForeignFlag(
        "--kv_cache_type",
        ("continuous", "paged", "disabled"),
        "the KV cache is always paged",
    ),
    ForeignFlag("--logits_dtype", ("float16", "float32", "bfloat16"), "logits are always float32"),
    ForeignFlag("--gather_context_logits", Kind.SWITCH, _LOGITS),
    ForeignFlag("--gather_generation_logits", Kind.SWITCH, _LOGITS),
    ForeignFlag("--gather_all_token_logits", Kind.SWITCH, _LOGITS),
    ForeignFlag("--lora_dir", Kind.TEXT, "LoRA adapters", is_refused=True),
    ForeignFlag("--lora_ckpt_source", ("hf", "nemo"), "no adapter is loaded"),
    ForeignFlag("--lora_target_modules", Kind.TEXT, "LoRA adapters", is_refused=True),
    ForeignFlag("--max_lora_rank", Kind.INTEGER, "no adapter is loaded"),
    ForeignFlag(
        "--speculative_decoding_mode",
        ("draft_tokens_external", "lookahead_decoding", "medusa", "explicit_draft_tokens", "eagle"),
        "tokens are decoded one by one, with the same result",
    ),
    ForeignFlag("--max_draft_len", Kind.INTEGER, "tokens are decoded one by one"),
    ForeignFlag(
        "--auto_parallel", Kind.INTEGER, "automatic sharding", is_refused=True, neutral=("1",)
    ),
    ForeignFlag("--gpus_per_node", Kind.INTEGER, "ranks are placed when they are started"),
    ForeignFlag("--cluster_key", Kind.TEXT, _RUN_TIME),
)

TABLE = PLUGIN_FLAGS + BUILD_FLAGS
