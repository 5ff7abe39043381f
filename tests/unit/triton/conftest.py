"""Puts a fake of the stub's module in place before the modules under test import it."""

from tests.unit.triton import fake_pb_utils

__all__ = ["fake_pb_utils"]
