"""Modules that a host and a stub never use: left out of their processes, there for who asks."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import tidemill.host.__main__
import asyncio, inspect, numpy, ssl
inspect.getframeinfo(inspect.currentframe())  # asks every module for its file, as Triton's logger
assert not {"numpy.ma.core", "numpy.random.mtrand", "_ssl"} & set(sys.modules)
assert numpy.ma.array([1, 2], mask=[True, False]).sum() == 2
assert len(numpy.random.default_rng(1).random(3)) == 3
assert numpy.fft.fft([1.0, 0.0]).tolist() == [1, 1]
from numpy.polynomial import Polynomial
assert Polynomial([1, 2])(3) == 7
assert asyncio.sslproto.SSLProtocol and ssl.create_default_context()
assert not hasattr(numpy.fft, "none") and type(numpy.fft) is type(sys)
"""


def test_unused_modules_stay_unread_until_they_are_used() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
