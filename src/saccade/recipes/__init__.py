"""The recipes that come with saccade, by name, and the files that they read."""
