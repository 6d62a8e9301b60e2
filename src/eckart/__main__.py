"""`python -m eckart`, the same as `eckart`."""

from eckart.cli.main import run

run()
