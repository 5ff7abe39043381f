"""Tidemill: the TensorRT-LLM + Triton workflow, kept alive and made portable.

`import tidemill` is cheap: the rooms are imported when they are first used.
"""

from tidemill.base.version import __version__

__all__ = ["__version__"]
