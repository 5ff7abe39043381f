"""Runs the `tidemill` command as `python -m tidemill`."""

from tidemill.frontends.cli.main import main

if __name__ == "__main__":
    main()
