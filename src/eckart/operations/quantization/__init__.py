"""A model's linear layers in four bits."""
