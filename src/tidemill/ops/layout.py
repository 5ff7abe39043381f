"""Where native code keeps the elements of weights, activations and the key-value cache.

Weights     panels of 32 outputs: [N/32][K/step][2][16][step]; one contiguous stream a thread.
            `step` is 2 for bf16 and 4 for q8 and f8 (a 32-bit word), 1 otherwise.
            A panel of q8 begins with 32 f32 scales and 32 i32 starts (-128 * sum of levels): a
            sum that begins there makes up for activations being stored as level + 128. A panel of
            f8 begins with its 32 f32 scales.
            A panel of 4 bits begins with 32 f32 starts (-128 * sum of values), then come groups:
            32 f16 scales, 32 f16 offsets where the type has them, and words of 8 inputs a output:
            nibble 2t is input t, nibble 2t + 1 is input 4 + t, so that both halves of the bytes
            are 4 inputs in order.
            A panel of bf12 begins with its 32 f32 scales, powers of two. 8 inputs of an output are
            three words, [N/32][K/8][2][3][16]: 12 bits an input, which are sign, 4 bits of exponent
            and 7 of mantissa of value / scale, whose exponents are -15 to 0; zeros stand for 0.
            Pairs 0 to 2 keep sign (bit 15) and the rest (bits 10..0) in their own words; pair 3
            lies in bits 14..11 of all three: exponent; high mantissa; sign and low mantissa.
            Where one of the 8 inputs does not fit, all are zeros there and are listed before the
            words: i32 places (step * 32 + output), in order and with a last one that no step has;
            then, from a cache line on, each place's 8 inputs in bf16, value / scale.
Activations plain rows whose stride is an odd number of cache lines, so that the rows of a register
            tile fall into different cache sets. A q8 row is bytes of level + 128, then its f32
            scale, then for every 32 columns the sum of their bytes as f32, exactly.
Cache       k[block][head][D/step][BS][step], v[block][head][BS/step][D][step]: tokens (for k) and
            dimensions (for v) lie in vector lanes, so nothing is summed across lanes. A head of
            an 8-bit block ends with an f32 scale for each of its tokens.
All padding is zero and stays zero, or is multiplied by zeros. Units: elements unless named bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.dtypes import SCALE_BYTES, DType

LANES = 16  # floats of the kernels' working vector
PANEL = 32  # outputs of a panel: two vectors of 16
K_UNROLL = 2  # steps of k that a kernel takes at once
CACHE_LINE_BYTES = 64
ATTENTION_CHUNK = 64  # cached positions that attention takes at once
ATTENTION_PARTITION = 256  # positions that are summed up apart from others, and then joined
BF12_BIAS = 112  # from a bf12 exponent to that of bf16
NOWHERE = 0x7FFFFFFF  # the place behind a list's last
_K_STEP = {DType.BF16: 2, DType.BF12: 8, DType.Q8: 4, DType.F8: 4}
_PANEL_HEADER_BYTES = {DType.Q8: 8 * PANEL, DType.F8: 4 * PANEL}
LISTED_AT = 4 * PANEL  # byte of a bf12 panel where places are listed, behind the scales


def round_up(count: int, unit: int) -> int:
    """The least multiple of `unit` that is at least `count`."""
    return -(-count // unit) * unit


def k_step(weight: DType) -> int:
    """Inputs that one element of a packed row covers."""
    return 8 if weight.group_size else _K_STEP.get(weight, 1)


def panel_header_bytes(weight: DType, k: int) -> int:
    """Bytes of scales, starts and lists before the words of a panel with k inputs."""
    if weight.group_size:
        return 4 * PANEL
    if weight is DType.BF12:
        return listed_inputs_at(k) + 8 * DType.BF16.itemsize_bytes * most_listed(k)
    return _PANEL_HEADER_BYTES.get(weight, 0)


def group_bytes(weight: DType) -> int:
    """Bytes of one packed group of a panel: scales, offsets and nibbles."""
    return PANEL * (weight.group_header_bytes + weight.group_size // 2)


def panel_bytes(k: int, weight: DType) -> int:
    """Bytes of one packed panel of a weight with k inputs."""
    if weight.group_size:
        return panel_header_bytes(weight, k) + k // weight.group_size * group_bytes(weight)
    if weight is DType.BF12:
        return panel_header_bytes(weight, k) + PANEL * weight.row_bytes(padded_k(k, weight))
    return panel_header_bytes(weight, k) + padded_k(k, weight) * PANEL * weight.itemsize_bytes


def listed_inputs_at(k: int) -> int:
    """Byte of a bf12 panel where the inputs of the listed places begin."""
    return round_up(LISTED_AT + 4 * (most_listed(k) + 1), CACHE_LINE_BYTES)


def most_listed(k: int) -> int:
    """Places that a bf12 panel lists at most: about one for 2,048 weights."""
    return round_up(k // 64 + 4, 4)


def padded_k(k: int, weight: DType) -> int:
    """Inputs of a packed weight, padding included."""
    return round_up(k, K_UNROLL * k_step(weight))


def padded_n(n: int) -> int:
    """Outputs of a packed weight, padding included."""
    return round_up(n, PANEL)


def wide_row(columns: int) -> int:
    """Stored elements of an f32 row that a linear layer writes or a norm reads."""
    return padded_n(columns)


def activation_row(columns: int, dtype: DType) -> int:
    """Stored elements of an activation row: an odd number of cache lines."""
    padded = padded_n(columns)
    row_bytes = sums_at(columns) + padded // 8 if dtype is DType.Q8 else dtype.row_bytes(padded)
    lines = -(-row_bytes // CACHE_LINE_BYTES) | 1
    return lines * CACHE_LINE_BYTES // dtype.itemsize_bytes


def scale_at(columns: int) -> int:
    """Byte of a q8 activation row where its f32 scale lies."""
    return padded_n(columns)


def sums_at(columns: int) -> int:
    """Byte of a q8 activation row where the sums of each 32 columns begin."""
    return scale_at(columns) + SCALE_BYTES


@dataclass(frozen=True)
class CacheLayout:
    """Strides of one layer's paged cache in bytes; K and V have the same.

    `dtype` is what is stored, `compute` what attention multiplies: the same unless quantised.
    """

    num_kv_heads: int
    head_size: int
    tokens_per_block: int
    dtype: DType
    compute: DType

    @property
    def step(self) -> int:
        """Dimensions of K (or tokens of V) that lie together."""
        return k_step(self.compute)

    @property
    def word_bytes(self) -> int:
        """One token's `step` dimensions (of K), or one dimension's `step` tokens (of V)."""
        return self.step * self.dtype.itemsize_bytes

    @property
    def key_step_bytes(self) -> int:
        """From one word of a key to its next."""
        return self.tokens_per_block * self.word_bytes

    @property
    def scales_at(self) -> int:
        """Where a block's scales of one head begin: an f32 for each token, behind its elements."""
        return self.head_size * self.tokens_per_block * self.dtype.itemsize_bytes

    @property
    def head_bytes(self) -> int:
        """A block's keys (or values) of one head."""
        return self.tokens_per_block * self.dtype.row_bytes(self.head_size)

    @property
    def block_bytes(self) -> int:
        return self.num_kv_heads * self.head_bytes
