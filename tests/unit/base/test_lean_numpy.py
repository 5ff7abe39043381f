"""NumPy's parts that a host never uses: left out of its process, there for who asks."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import tidemill.host.__main__
import numpy
assert not {"numpy.ma.core", "numpy.random.mtrand"} & set(sys.modules)
assert numpy.ma.array([1, 2], mask=[True, False]).sum() == 2
assert len(numpy.random.default_rng(1).random(3)) == 3
assert numpy.fft.fft([1.0, 0.0]).tolist() == [1, 1]
"""


def test_host_leaves_parts_of_numpy_unread_until_they_are_used() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
