"""Block bookkeeping of the paged key-value cache, in pure Python."""
