"""TensorRT-LLM's scripts/launch_triton_server.py: starts `tidemill serve` and returns at once."""

import subprocess
import sys

from tidemill.base.python_start import python_arguments
from tidemill.frontends.triton.launch_flags import translate_launch_flags

if __name__ == "__main__":
    flags = translate_launch_flags(sys.argv[1:], print)
    command = [sys.executable, *python_arguments("tidemill.frontends.cli.main"), "serve", *flags]
    process = subprocess.Popen(command, start_new_session=True)
    print(f"started, process {process.pid}; stop it with: kill {process.pid}")
