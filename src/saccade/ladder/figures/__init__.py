"""The statistics of a ladder, from rows alone."""
