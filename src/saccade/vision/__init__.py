"""Algorithms that several tools share: where frames, colours and print are.

Invariant: pure functions of pixels.
Left out on purpose: words (`ocr` has a back end of its own) and photographs.
"""
