"""The ladder: arms that are trained alike, measured alike and compared, with controls that could
refute that looking helps.

`arms` says what the arms are, `work` does jobs in processes, `runs` trains and measures all of
them, `figures` are the statistics, `page` shows them.
"""
