"""Which engines are compared, in which environment each runs, and on which file of a model.

All files of a model are made from one Hugging Face directory in bfloat16. A row is one engine at
one precision; `precision` says which rows are held against each other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PRECISIONS = ("bf16", "8-bit", "4-bit")
OURS = "tidemill"


def peers_dir() -> Path:
    """Return where environments and model files are kept, gigabytes of them."""
    return Path(os.environ.get("TIDEMILL_PEERS_DIR", "~/.cache/tidemill-peers")).expanduser()


@dataclass(frozen=True)
class EngineRow:
    """One engine at one precision; `file` lies in the model's directory, schemes are ours."""

    name: str
    precision: str
    home: str
    file: str
    quant: str = ""
    quant_head: str | None = None

    @property
    def is_ours(self) -> bool:
        return self.home == OURS


ROWS = (
    EngineRow("tidemill bf16", "bf16", OURS, "tidemill-none", "none"),
    EngineRow("tidemill w12a16", "bf16", OURS, "tidemill-w12a16", "w12a16"),
    EngineRow("llama.cpp BF16", "bf16", "llama_cpp", "bf16.gguf"),
    EngineRow("vLLM bf16", "bf16", "vllm", "hf"),
    EngineRow("OpenVINO bf16", "bf16", "openvino", "openvino-fp16"),
    EngineRow("tidemill w8a8", "8-bit", OURS, "tidemill-w8a8", "w8a8"),
    EngineRow("tidemill w8a16", "8-bit", OURS, "tidemill-w8a16", "w8a16"),
    EngineRow("llama.cpp Q8_0", "8-bit", "llama_cpp", "q8_0.gguf"),
    EngineRow("vLLM W8A8", "8-bit", "vllm", "w8a8"),
    EngineRow("OpenVINO int8", "8-bit", "openvino", "openvino-int8"),
    EngineRow("tidemill w4a8_g32", "4-bit", OURS, "tidemill-w4a8_g32", "w4a8_g32"),
    # Symmetric groups of 32 are Q4_0's. Whole: head and embedding, too, which else have 8 bits.
    EngineRow("tidemill w4a8_g32_sym", "4-bit", OURS, "tidemill-w4a8_g32_sym", "w4a8_g32_sym"),
    EngineRow(
        "tidemill w4a8_g32_sym whole",
        "4-bit",
        OURS,
        "tidemill-w4a8_g32_sym-whole",
        "w4a8_g32_sym",
        "w4a8_g32_sym",
    ),
    EngineRow("tidemill w4a16_g32", "4-bit", OURS, "tidemill-w4a16_g32", "w4a16_g32"),
    EngineRow("llama.cpp Q4_0", "4-bit", "llama_cpp", "q4_0.gguf"),
    EngineRow("llama.cpp Q4_0 whole", "4-bit", "llama_cpp", "q4_0_pure.gguf"),
    EngineRow("OpenVINO int4", "4-bit", "openvino", "openvino-int4"),
)

TCMALLOC = Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")


def environment_of(home: str, num_threads: int) -> dict[str, str]:
    """Return the variables that an engine's makers advise, on top of ours."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
    # Without compiled bytecode, imports alone take longer than anything that is timed.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    if home == "vllm":
        openmp = peers_dir() / "vllm" / "env" / "lib" / "libiomp5.so"
        preloaded = [str(each) for each in (TCMALLOC, openmp) if each.exists()]
        variables |= {
            # Left alone, it keeps a core free, and loses a third on two cores.
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{num_threads - 1}",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # What it keeps of a whole compilation it cannot read again, and compiles every time;
            # of the parts it can.
            "VLLM_USE_AOT_COMPILE": "0",
            "LD_PRELOAD": ":".join(preloaded),
        }
    return variables
