"""The spectra of a checkpoint, of the difference of two, or of an adapter."""
