"""Results as figures in files, one file per subject."""
