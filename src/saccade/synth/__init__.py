"""Where demonstrations come from: an oracle for charts, a base model's own chains, the boxes that a
task holds, or the model's own right episodes. All are text, replayed through the real tools.
"""
