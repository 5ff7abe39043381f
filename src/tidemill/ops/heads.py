"""The layout of packed heads that rope and attention share.

A row of qkv holds all query heads, then all key heads, then all value heads, each `head_size`
wide. In: an op's attributes. Out: `Heads`, with the widths and the three views.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.ir.rules import TypeFault
from tidemill.ir.storage import FloatArray
from tidemill.ops.expect import CACHE_DTYPES, Attrs, expect_dtype_attr, expect_int

HEAD_ATTRS: dict[str, type[int | float | str | bool]] = {
    "num_heads": int,
    "num_kv_heads": int,
    "head_size": int,
}


@dataclass(frozen=True)
class Heads:
    """Numbers and width of heads. `q_width` + 2 * `kv_width` columns make a row of qkv."""

    num_heads: int
    num_kv_heads: int
    head_size: int

    @staticmethod
    def of(attrs: Attrs) -> Heads:
        """Read the heads from an op's attributes.

        Raises: TypeFault when key-value heads do not divide the heads.
        """
        heads = Heads(
            expect_int(attrs, "num_heads"),
            expect_int(attrs, "num_kv_heads"),
            expect_int(attrs, "head_size"),
        )
        if heads.num_heads % heads.num_kv_heads:
            raise TypeFault(
                f"expected num_heads to be a multiple of num_kv_heads, got "
                f"{heads.num_heads} and {heads.num_kv_heads}"
            )
        return heads

    @property
    def q_width(self) -> int:
        return self.num_heads * self.head_size

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_size

    @property
    def qkv_width(self) -> int:
        return self.q_width + 2 * self.kv_width

    def kv_token_bytes(self, attrs: Attrs) -> int:
        """Bytes of one token's keys and values in a layer, as `cache_dtype` holds them."""
        dtype = expect_dtype_attr(attrs, "cache_dtype", *CACHE_DTYPES)
        return 2 * self.num_kv_heads * dtype.row_bytes(self.head_size)

    def split(self, qkv: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """View rows of qkv as queries, keys and values of shape (rows, heads, head width)."""
        rows = len(qkv)
        keys_at = self.q_width
        values_at = keys_at + self.kv_width
        return (
            qkv[:, :keys_at].reshape(rows, self.num_heads, self.head_size),
            qkv[:, keys_at:values_at].reshape(rows, self.num_kv_heads, self.head_size),
            qkv[:, values_at:].reshape(rows, self.num_kv_heads, self.head_size),
        )
