"""Families of image and video models: their modules under the names of every file layout."""
