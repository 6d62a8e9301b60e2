"""A fine-tune as an adapter: what goes in, the factors of each matrix, and how well they fit."""
