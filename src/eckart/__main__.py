"""The `eckart` program, also as `python -m eckart`."""

import os
import sys


def run() -> None:
    """Run the command line; Ctrl-C also ends the imports at its start without a traceback."""
    try:
        from eckart.cli.main import run as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        sys.stderr.write("eckart: interrupted\n")
        sys.stderr.flush()
        os._exit(130)


if __name__ == "__main__":
    run()
