"""A model folder written from another, tensor by tensor, some of them changed."""
