"""Tools that a model may call: `@tool` makes one of a function, `ToolBox` runs an episode's calls.

One file for each tool; a new file is listed in `builtin_tools` and nowhere else. Installed packages
offer their own as entry points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saccade import plugins
from saccade.backends import all_made, most_at_once
from saccade.config import BackendChoice, BackendKind
from saccade.errors import RecipeError
from saccade.tools.compare import compare
from saccade.tools.crop import crop
from saccade.tools.detect import detect
from saccade.tools.draw_horizontal_line import draw_horizontal_line
from saccade.tools.draw_vertical_line import draw_vertical_line
from saccade.tools.enhance import enhance
from saccade.tools.look import look
from saccade.tools.measure import measure
from saccade.tools.ocr import ocr
from saccade.tools.point import point
from saccade.tools.read_axis import read_axis
from saccade.tools.rotate import rotate
from saccade.tools.segment import segment
from saccade.tools.segment_around_point import segment_around_point
from saccade.tools.spec import Between, On, Parameter, Tool, XCoordinate, YCoordinate, tool
from saccade.tools.terminate import terminate
from saccade.tools.toolbox import ToolBox
from saccade.tools.zoom import zoom
from saccade.tools.zoom_subplot import zoom_subplot

__all__ = [
    "Between",
    "On",
    "Parameter",
    "Tool",
    "ToolBox",
    "XCoordinate",
    "YCoordinate",
    "batch_of",
    "builtin_tools",
    "compare",
    "crop",
    "detect",
    "draw_horizontal_line",
    "draw_vertical_line",
    "enhance",
    "is_known",
    "look",
    "measure",
    "ocr",
    "point",
    "read_axis",
    "rotate",
    "segment",
    "segment_around_point",
    "terminate",
    "tool",
    "tools_described",
    "tools_named",
    "zoom",
    "zoom_subplot",
]


def tools_named(
    names: Sequence[str], backends: Mapping[BackendKind, BackendChoice] | None = None
) -> list[Tool]:
    """Tools by name, ready to be called: ours, or those that installed packages offer.

    `backends` are the chosen ones by kind. Raises RecipeError with the names there are, for what is
    no tool or has another name, and where a back end that is needed can't be made.
    """
    tools = tools_described(names)
    ready = all_made({kind for tool in tools for _, kind in tool.needs}, backends)
    return [tool.with_backends(ready) for tool in tools]


def tools_described(names: Sequence[str]) -> list[Tool]:
    """Tools by name, without what does their looking: for whoever lets them run elsewhere.

    Raises RecipeError as `tools_named` does for what is no tool.
    """
    ours = builtin_tools()
    return [ours[name] if name in ours else _offered(name) for name in names]


def batch_of(tool: Tool, backends: Mapping[BackendKind, BackendChoice] | None = None) -> int:
    """Calls of a tool that share a pass of its model; 1 where each is answered alone."""
    chosen = backends or {}
    return max(
        (most_at_once(kind, chosen.get(kind, BackendChoice())) for _, kind in tool.needs), default=1
    )


def is_known(name: str) -> bool:
    """Whether a tool of that name comes with saccade or with an installed package."""
    return name in builtin_tools() or name in plugins.offered("saccade.tools")


def _offered(name: str) -> Tool:
    found = plugins.load("saccade.tools", name)
    if found is None:
        known = ", ".join(sorted({*builtin_tools(), *plugins.offered("saccade.tools")}))
        raise RecipeError(f"No tool named {name!r}. Available: {known}.")
    if not isinstance(found, Tool) or found.name != name:
        raise RecipeError(
            f"The package that offers the tool {name!r} must give a @tool function of that name, "
            f"got {getattr(found, 'name', found)!r}."
        )
    return found


def builtin_tools() -> dict[str, Tool]:
    """Every tool that comes with saccade, by name; the answer action comes last."""
    tools = (
        *(crop, zoom, zoom_subplot, look, compare, rotate, enhance),
        *(draw_horizontal_line, draw_vertical_line, measure),
        *(ocr, read_axis, detect, point, segment, segment_around_point),
        terminate,
    )
    return {t.name: t for t in tools}
