"""Adapters in other formats: how modules are named there, and what is fused."""
