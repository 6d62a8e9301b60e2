"""Files that are not on this machine, read by ranges of bytes over HTTP, from the hub, or through fsspec."""
