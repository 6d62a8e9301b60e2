"""The one writer of model folders: a plan of every output tensor, and its streamed writing."""
