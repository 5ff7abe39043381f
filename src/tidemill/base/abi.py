"""The native calling convention: what compiled code and the runtime agree on, as numbers.

A plan is a table of records of 64-bit words; word 0 is a kernel's address, its operands follow.
The context is the team's shared block. The step header heads the step's inputs. The code
generator emits by these numbers and the runtime fills memory by them; changing one means a new
engine format version. Units: words are 64-bit.
"""

RECORD_WORDS = 32

# The last words of a record. Of few rows each thread makes a copy of its own, where the output's
# buffer has room for all: for so many rows as the first word says, 0 where none are made. Then no
# barrier follows. Whoever reads copies finds that number in the second. Word 1 leads to the rows.
RECORD_MADE_COPIES, RECORD_READ_COPIES = 31, 30
MOST_COPIED_ROWS = 4

# Words of the team's context. What different threads write lies a cache line apart.
CONTEXT_GO, CONTEXT_SLEEPERS, CONTEXT_STOP, CONTEXT_BARRIER = 0, 8, 16, 24
CONTEXT_NUM_OPS, CONTEXT_RECORDS, CONTEXT_NUM_THREADS, CONTEXT_PROFILE = 32, 33, 34, 35
CONTEXT_SYSCALL = 36  # address of the C library's syscall function
CONTEXT_BARRIER_SLEEPERS = 40
CONTEXT_PHASE = 48  # + 16 * thread: barriers passed so far; 8 words on: arrivals of group `thread`
GROUP_THREADS = 8  # of a larger team's: they arrive together, and the last goes on to the barrier

WORKER_SYMBOL, STEP_SYMBOL = "team_worker", "team_step"

# Words of the step header: counts of this step.
HEADER_TOKENS, HEADER_LOGIT_ROWS, HEADER_TILES, HEADER_CACHED_BLOCKS = 0, 1, 2, 3
HEADER_WORDS = 8

# Words of a row of edits: address and number of records, address of a bias row, of a mask; 32-bit
# words of a record: token, add, factor, subtract (ops/logits_edits.py).
EDIT_WORDS, EDIT_RECORD_WORDS = 4, 4

# 32-bit words of an attention tile: first packed row, number of tokens, first position, sequence.
TILE_WORDS = 4

# Steps of fewer tokens list no cached blocks: memory is their limit whoever asks for what.
LEAST_TOKENS_TO_FETCH_AHEAD = 16
MOST_CACHED_BLOCKS = 2048  # that a step lists


def context_words(num_threads: int) -> int:
    """Size of the context of a team."""
    return CONTEXT_PHASE + 16 * num_threads
