"""Extracting an adapter from a fine-tune: which tensors it contains, the factors of each matrix, and their errors."""
