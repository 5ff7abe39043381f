"""The package version; the build reads it from here, engines and checkpoints record it."""

__version__ = "0.1.0"
