"""terminate: the action by which the model answers. A dialect reads it; no tool box runs it."""

from __future__ import annotations

from typing import Annotated

from saccade.tools.spec import tool

__all__ = ["terminate"]


@tool(aliases=("Terminate",), is_answer=True)
def terminate(ans: Annotated[str, "the final answer"]) -> str:
    """Give the final answer and end."""
    return ans
