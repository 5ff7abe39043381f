"""Quantises a GGUF file with llama.cpp's own code.

    quantize_gguf.py IN OUT {q8_0,q4_0,q4_0_pure} THREADS

Beside Q4_0, head and embedding get more bits, but where it is pure.
"""

from __future__ import annotations

import sys

import llama_cpp

NAME_TO_FTYPE = {"q4_0": 2, "q4_0_pure": 2, "q8_0": 7}

if __name__ == "__main__":
    source, target, name, num_threads = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = NAME_TO_FTYPE[name], int(num_threads)
    params.pure = name.endswith("_pure")
    sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), params))
