"""Renderers: one for each model family, the only place that knows templates, special tokens and
frames.
"""
