"""The build verb: flags to a BuildRequest, then one library call.

Takes the command lines of trtllm-build; knows nothing of graphs or kernels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidemill.base.errors import ConfigError
from tidemill.frontends.cli import trtllm_build_flags
from tidemill.frontends.cli.foreign_flags import read_foreign_flags
from tidemill.frontends.cli.progress_bar import progress_bar
from tidemill.frontends.cli.shell import flags_of, given, print_json, say, say_notes

# trtllm-build's default; it matters only when --max_output_len is given without --max_input_len.
DEFAULT_MAX_INPUT_LEN = 1024
# Spelled out here, so that help imports nothing; a test holds them against quant/schemes.py.
SCHEMES = (
    "none", "w12a16", "w8a16", "w8a8", "fp8", "w4a16_g32", "w4a16_g64", "w4a16_g128", "w4a8_g32",
    "w4a8_g64", "w4a8_g128", "w4a16_g32_sym", "w4a16_g64_sym", "w4a16_g128_sym", "w4a8_g32_sym",
    "w4a8_g64_sym", "w4a8_g128_sym",
)  # fmt: skip

HELP = """Build an engine for this machine from a checkpoint.

Every other flag of trtllm-build is understood: it says that it has no effect here, or is refused.

\b
Examples:
  tidemill build --checkpoint_dir ./ckpt --output_dir ./engine
  tidemill build --checkpoint_dir ./ckpt --output_dir ./engine --gemm_plugin float16 \\
      --max_batch_size 64 --max_input_len 2048 --max_output_len 1024
  tidemill build --checkpoint_dir ./ckpt --output_dir ./engine --quant w8a8 --tune

w12a16 keeps bf16 weights in three quarters of their bytes, with the same answers bit for bit.
"""


def resolve_max_seq_len(
    max_seq_len: int | None, max_input_len: int | None, max_output_len: int | None
) -> int | None:
    """Return the longest sequence from whichever flags were given; None leaves it to the model.

    Raises: ConfigError when --max_seq_len contradicts the sum of the other two.
    """
    if max_output_len is None:
        return max_seq_len
    total = (max_input_len or DEFAULT_MAX_INPUT_LEN) + max_output_len
    if max_seq_len is not None and max_seq_len != total:
        raise ConfigError(
            "two flags disagree about the longest sequence",
            where="--max_seq_len and --max_output_len of build",
            expected=f"--max_seq_len {total} (--max_input_len plus --max_output_len)",
            got=f"--max_seq_len {max_seq_len}",
            hint="give --max_seq_len alone, or --max_input_len with --max_output_len",
        )
    return total


def build(
    context: typer.Context,
    checkpoint_dir: Annotated[
        Path, typer.Option("--checkpoint_dir", help="Checkpoint that convert wrote.")
    ],
    output_dir: Annotated[
        Path, typer.Option("--output_dir", help="Where the engine is written.")
    ] = Path("engine_outputs"),
    max_batch_size: Annotated[
        int | None, typer.Option("--max_batch_size", min=1, help="Most requests in one step.")
    ] = None,
    max_input_len: Annotated[
        int | None, typer.Option("--max_input_len", min=1, help="Longest prompt, in tokens.")
    ] = None,
    max_output_len: Annotated[
        int | None,
        typer.Option("--max_output_len", min=1, help="Longest answer; sets --max_seq_len."),
    ] = None,
    max_seq_len: Annotated[
        int | None,
        typer.Option(
            "--max_seq_len", "--max_decoder_seq_len", min=1, help="Longest prompt plus answer."
        ),
    ] = None,
    max_num_tokens: Annotated[
        int | None, typer.Option("--max_num_tokens", min=1, help="Most tokens in one step.")
    ] = None,
    max_beam_width: Annotated[
        int | None, typer.Option("--max_beam_width", min=1, help="Widest beam search.")
    ] = None,
    tokens_per_block: Annotated[
        int | None,
        typer.Option("--tokens_per_block", min=1, help="KV block size, a multiple of 16."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Ranks built at the same time.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="CPU feature level to build for, instead of this CPU's."),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option("--quant", help="Scheme of the layers: " + ", ".join(SCHEMES) + "."),
    ] = None,
    quant_head: Annotated[
        str | None,
        typer.Option(
            "--quant_head",
            help="Scheme of head and embedding; default: --quant's; 8 bits beside 4.",
        ),
    ] = None,
    is_tuned: Annotated[
        bool, typer.Option("--tune", help="Time kernels here and keep the fastest of each shape.")
    ] = False,
    kv_cache_dtype: Annotated[
        str | None,
        typer.Option(
            "--kv_cache_dtype", help="KV cache: none (as wide as the weights), int8 or fp8."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    tool, table = trtllm_build_flags.TOOL, trtllm_build_flags.TABLE
    notes = read_foreign_flags(tool, table, context.args, flags_of(context))
    longest = resolve_max_seq_len(max_seq_len, max_input_len, max_output_len)
    say_notes(notes)

    from tidemill.api.build import BuildRequest
    from tidemill.api.build import build as build_engine

    request = BuildRequest(
        checkpoint_dir=checkpoint_dir,
        output_dir=output_dir,
        is_tuned=is_tuned,
        **given(
            max_batch_size=max_batch_size,
            max_input_len=max_input_len,
            max_seq_len=longest,
            max_num_tokens=max_num_tokens,
            max_beam_width=max_beam_width,
            tokens_per_block=tokens_per_block,
            workers=workers,
            target=target,
            quant=quant,
            quant_head=quant_head,
            kv_cache_dtype=kv_cache_dtype,
        ),
    )
    with progress_bar("build") as progress:
        report = build_engine(request, progress)
    if as_json:
        print_json(report)
    else:
        say(str(report))
