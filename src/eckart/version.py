"""The version of eckart."""

__version__ = "0.1.0"
