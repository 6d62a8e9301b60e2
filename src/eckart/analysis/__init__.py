"""Spectra of a whole checkpoint, of the difference of two, or of an adapter, as one result."""
