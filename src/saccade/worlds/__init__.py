"""Generators of pictures whose geometry is known exactly."""
