"""The parts of the torch engine, each with one subject; nothing else imports them, the bench
excepted.

Invariant: only `stats` is told what others did; draws, rows, runs, forward passes and features know
of each other no more than their imports say.
"""
