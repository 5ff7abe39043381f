"""Turns the flags of TensorRT-LLM's launch_triton_server.py into those of `tidemill serve`.

In: its command line. Out: ours. Flags about ranks, MPI, GPUs and the server's program have no
counterpart and are said to be left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

SERVE_FLAGS = {
    "model_repo": "--model_repository",
    "http_port": "--http_port",
    "grpc_port": "--grpc_port",
    "metrics_port": "--metrics_port",
    "exit_timeout": "--exit_timeout",
}
LEFT_OUT_VALUES = (
    "world_size",
    "tritonserver",
    "tensorrt_llm_model_name",
    "multimodal_gpu0_cuda_mem_pool_bytes",
)
LEFT_OUT_SWITCHES = (
    "force",
    "multi-model",
    "disable-spawn-processes",
    "trtllm_llmapi_launch",
    "no-mpi",
    "oversubscribe",
)


def translate_launch_flags(arguments: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Return the arguments for `tidemill serve` that do what these would have done."""
    parser = argparse.ArgumentParser("launch_triton_server.py")
    for name in SERVE_FLAGS:
        parser.add_argument(f"--{name}", required=name == "model_repo")
    for name in LEFT_OUT_VALUES:
        parser.add_argument(f"--{name}")
    for name in (*LEFT_OUT_SWITCHES, "log"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--log-file")
    given = vars(parser.parse_args(list(arguments)))
    left_out = (*LEFT_OUT_VALUES, *LEFT_OUT_SWITCHES)
    ignored = [name for name in left_out if given[name.replace("-", "_")]]
    if ignored:
        reason = "left out (one process, no GPU, the wheel's tritonserver or the one on PATH): "
        say(reason + ", ".join(ignored))
    flags = [
        part
        for name, flag in SERVE_FLAGS.items()
        if given[name] is not None
        for part in (flag, str(given[name]))
    ]
    if not (given["log"] or given["log_file"]):
        return flags
    return [*flags, "--", "--log-verbose=3", f"--log-file={given['log_file'] or 'triton_log.txt'}"]
