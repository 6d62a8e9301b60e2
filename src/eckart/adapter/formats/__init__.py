"""The file formats that adapters come in."""
