"""The convert verb: flags to a ConvertRequest, then one library call.

Knows the flags and their spelling; everything about models is behind `api.convert`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidemill.frontends.cli import convert_checkpoint_flags
from tidemill.frontends.cli.foreign_flags import read_foreign_flags
from tidemill.frontends.cli.progress_bar import progress_bar
from tidemill.frontends.cli.shell import check_choice, flags_of, given, print_json, say, say_notes

PRECISIONS = ("int8", "int4")
DTYPES = ("auto", "float16", "bfloat16", "float32")

HELP = """Convert a model to a checkpoint in TensorRT-LLM's format.

Reads a Hugging Face directory (or hub id), a GGUF file, a TensorRT-LLM checkpoint, or any
directory of tensors with --weight_map. Every other flag of convert_checkpoint.py is understood:
it says that it has no effect here, or is refused.

\b
Examples:
  tidemill convert --model_dir ./Llama-2-7b-hf --output_dir ./ckpt --dtype float16
  tidemill convert --model_dir model.Q4_1.gguf --output_dir ./ckpt --dtype bfloat16
  tidemill convert --model_dir ./Llama-2-7b-hf --output_dir ./ckpt --use_weight_only
  tidemill convert --model_dir ./Llama-2-7b-hf --output_dir ./ckpt-tp2 --tp_size 2 --workers 2
"""


def convert(
    context: typer.Context,
    model_dir: Annotated[
        str, typer.Option("--model_dir", help="Model directory, GGUF file or hub id.")
    ],
    output_dir: Annotated[
        Path, typer.Option("--output_dir", help="Where the checkpoint is written.")
    ] = Path("tllm_checkpoint"),
    tp_size: Annotated[int, typer.Option("--tp_size", min=1, help="Tensor-parallel ranks.")] = 1,
    pp_size: Annotated[int, typer.Option("--pp_size", min=1, help="Pipeline-parallel stages.")] = 1,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Stored type: " + ", ".join(DTYPES) + ".")
    ] = "auto",
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Threads that convert tensors.")
    ] = 1,
    weight_map: Annotated[
        Path | None,
        typer.Option("--weight_map", help="JSON map of names, for custom checkpoints."),
    ] = None,
    use_parallel_embedding: Annotated[
        bool, typer.Option("--use_parallel_embedding", help="Shard the embedding, too.")
    ] = False,
    embedding_sharding_dim: Annotated[
        int, typer.Option("--embedding_sharding_dim", min=0, max=1, help="0 vocabulary, 1 hidden.")
    ] = 0,
    use_weight_only: Annotated[
        bool, typer.Option("--use_weight_only", help="Quantise the layers' matrices.")
    ] = False,
    weight_only_precision: Annotated[
        str,
        typer.Option("--weight_only_precision", help="Their type: " + ", ".join(PRECISIONS) + "."),
    ] = "int8",
    int8_kv_cache: Annotated[
        bool, typer.Option("--int8_kv_cache", help="Ask for engines with an int8 KV cache.")
    ] = False,
    fp8_kv_cache: Annotated[
        bool, typer.Option("--fp8_kv_cache", help="Ask for engines with an fp8 KV cache.")
    ] = False,
    save_config_only: Annotated[
        bool, typer.Option("--save_config_only", help="Write config.json only.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    tool, table = convert_checkpoint_flags.TOOL, convert_checkpoint_flags.TABLE
    notes = read_foreign_flags(tool, table, context.args, flags_of(context))
    check_choice("--dtype of convert", dtype, DTYPES)
    check_choice("--weight_only_precision of convert", weight_only_precision, PRECISIONS)
    if weight_only_precision != "int8" and not use_weight_only:
        notes.append(
            f"--weight_only_precision {weight_only_precision}: no effect without --use_weight_only"
        )
    say_notes(notes)

    from tidemill.api.convert import ConvertRequest
    from tidemill.api.convert import convert as convert_model

    request = ConvertRequest(
        model_dir=model_dir,
        output_dir=output_dir,
        tp_size=tp_size,
        pp_size=pp_size,
        dtype=dtype,
        workers=workers,
        use_parallel_embedding=use_parallel_embedding,
        embedding_sharding_dim=embedding_sharding_dim,
        save_config_only=save_config_only,
        use_weight_only=use_weight_only,
        weight_only_precision=weight_only_precision,
        int8_kv_cache=int8_kv_cache,
        fp8_kv_cache=fp8_kv_cache,
        **given(weight_map=weight_map),
    )
    with progress_bar("convert") as progress:
        report = convert_model(request, progress)
    if as_json:
        print_json(report)
    else:
        say_notes(report.notes)
        say(
            f"converted {report.num_tensors} tensors, {report.total_bytes / 1e6:.1f} MB of "
            f"{report.dtype}, in {report.seconds:.2f} s, peak memory "
            f"{report.peak_memory_bytes / 1e6:.0f} MB: {report.output_dir}"
        )
