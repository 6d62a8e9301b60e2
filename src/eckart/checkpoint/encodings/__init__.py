"""Storage encodings of weights: codes and scales that are read as the numbers they stand for."""
