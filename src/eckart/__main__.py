"""The `eckart` program, also as `python -m eckart`."""

from eckart.cli.signals import end_at_once


def run() -> None:
    """Run the command line; Ctrl-C also ends the imports at its start without a traceback."""
    end_at_once()
    from eckart.cli.main import run as run_command_line

    run_command_line()


if __name__ == "__main__":
    run()
