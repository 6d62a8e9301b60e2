"""Results as tables for a terminal of 80 columns, one file per kind of result."""
