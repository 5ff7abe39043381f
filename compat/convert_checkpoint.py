"""TensorRT-LLM's convert_checkpoint.py, as `tidemill convert`: old command lines run verbatim."""

import sys

from tidemill.frontends.cli.main import main

main(["convert", *sys.argv[1:]])
