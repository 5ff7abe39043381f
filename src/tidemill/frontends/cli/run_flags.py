"""The flags of TensorRT-LLM's examples/run.py that the run verb does not act on.

Data only. Flags that would change the answer are refused unless their value asks for nothing.
Source: TensorRT-LLM examples/run.py and examples/utils.py, 0.17 to 1.0.
"""

from __future__ import annotations

from tidemill.frontends.cli.foreign_flags import ForeignFlag, Kind

TOOL = "run"

_BEAMS = "beam search in run; the Python API and Triton have it"
_SPECULATION = "tokens are decoded one by one, with the same result"
_KERNEL = "one attention kernel, which accumulates in float32, serves every case"
_WINDOW = "attention windows given at run time"
_LORA = "LoRA adapters"
_FILES = "output files; redirect stdout or use --json"
_BOOL = ("True", "False", "true", "false", "1", "0")


def _refused(name: str, values: Kind, why: str, *neutral: str) -> ForeignFlag:
    return ForeignFlag(name, values, why, is_refused=True, neutral=neutral)


TABLE = (
    _refused("--num_beams", Kind.INTEGER, _BEAMS, "1"),
    _refused("--num_return_sequences", Kind.INTEGER, "several answers to one prompt", "1"),
    ForeignFlag("--length_penalty", Kind.NUMBER, "it ranks beams, and there are none"),
    ForeignFlag("--early_stopping", Kind.INTEGER, "it ends beams, and there are none"),
    ForeignFlag("--beam_search_diversity_rate", Kind.NUMBER, "there are no beams"),
    _refused("--sink_token_length", Kind.INTEGER, _WINDOW, "0"),
    _refused("--max_attention_window_size", Kind.INTEGER, _WINDOW),
    ForeignFlag("--multi_block_mode", _BOOL, _KERNEL),
    ForeignFlag("--enable_context_fmha_fp32_acc", Kind.SWITCH, _KERNEL),
    ForeignFlag("--cuda_graph_mode", Kind.SWITCH, "a step is one native call already"),
    ForeignFlag("--no_prompt_template", Kind.SWITCH, "no template is used without --chat"),
    ForeignFlag("--use_py_session", Kind.SWITCH, "there is one session"),
    ForeignFlag("--debug_mode", Kind.SWITCH, "TIDEMILL_DEBUG=0..5 chooses what is shown"),
    ForeignFlag("--streaming_interval", Kind.INTEGER, "every token is streamed"),
    ForeignFlag("--run_profiling", Kind.SWITCH, "'tidemill bench' measures"),
    ForeignFlag("--vocab_file", Kind.TEXT, "--tokenizer_dir names a tokenizer"),
    ForeignFlag("--tokenizer_type", Kind.TEXT, "tokenizer.json says what it is"),
    ForeignFlag("--return_all_generated_tokens", Kind.SWITCH, "the whole answer is printed"),
    ForeignFlag("--max_input_length", Kind.INTEGER, "the engine's limit holds, nothing is cut"),
    _refused("--output_csv", Kind.TEXT, _FILES),
    _refused("--output_npy", Kind.TEXT, _FILES),
    _refused("--output_logits_npy", Kind.TEXT, "logits as an output"),
    _refused("--output_log_probs_npy", Kind.TEXT, "log-probabilities as an output"),
    _refused("--output_cum_log_probs_npy", Kind.TEXT, "log-probabilities as an output"),
    _refused("--output_generation_logits", Kind.SWITCH, "logits as an output"),
    _refused("--num_prepend_vtokens", Kind.INTEGER, "prompt tables"),
    _refused("--prompt_table_path", Kind.TEXT, "prompt tables"),
    _refused("--prompt_tasks", Kind.TEXT, "prompt tables"),
    _refused("--lora_dir", Kind.TEXT, _LORA),
    _refused("--lora_task_uids", Kind.TEXT, _LORA),
    ForeignFlag("--draft_target_model_config", Kind.TEXT, _SPECULATION),
    ForeignFlag("--prompt_lookup_config", Kind.TEXT, "--max_draft_len has n-gram lookup"),
    ForeignFlag("--medusa_choices", Kind.TEXT, _SPECULATION),
    ForeignFlag("--eagle_choices", Kind.TEXT, _SPECULATION),
    ForeignFlag("--lookahead_config", Kind.TEXT, _SPECULATION),
    ForeignFlag("--gpu_weights_percent", Kind.NUMBER, "weights are mapped from the engine file"),
    ForeignFlag(
        "--log_level",
        ("internal_error", "error", "warning", "info", "verbose", "debug", "trace"),
        "TIDEMILL_DEBUG=0..5 chooses what is shown",
    ),
)
