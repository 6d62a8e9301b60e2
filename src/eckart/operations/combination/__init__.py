"""Several adapters as one: exact sums, and what pruning makes of them."""
