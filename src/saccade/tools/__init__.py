"""Tools that a model may call: `@tool` makes one of a function, `ToolBox` runs an episode's calls.

One file for each tool; a new file is listed in `builtin_tools` and nowhere else.
"""

from __future__ import annotations

from saccade.tools.crop import crop
from saccade.tools.draw_horizontal_line import draw_horizontal_line
from saccade.tools.draw_vertical_line import draw_vertical_line
from saccade.tools.look import look
from saccade.tools.spec import Between, On, Parameter, Tool, XCoordinate, YCoordinate, tool
from saccade.tools.terminate import terminate
from saccade.tools.toolbox import ToolBox
from saccade.tools.zoom import zoom

__all__ = [
    "Between",
    "On",
    "Parameter",
    "Tool",
    "ToolBox",
    "XCoordinate",
    "YCoordinate",
    "builtin_tools",
    "crop",
    "draw_horizontal_line",
    "draw_vertical_line",
    "look",
    "terminate",
    "tool",
    "zoom",
]


def builtin_tools() -> dict[str, Tool]:
    """Every tool that comes with saccade, by name; the answer action comes last."""
    tools = (crop, zoom, look, draw_horizontal_line, draw_vertical_line, terminate)
    return {t.name: t for t in tools}
