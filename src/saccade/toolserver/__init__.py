"""Ways to run tools that survive what tools do: worker processes, and services elsewhere.

Invariant: every way is a `Runner` and returns what threads of this process would. It knows tools
and pictures, no engine, no episode and no renderer.
"""
