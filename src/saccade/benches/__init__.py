"""Measurements of whole steps, ours beside those of others."""
