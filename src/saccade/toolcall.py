"""One tool on one picture, as a model would call it, for the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from saccade.errors import StorageError, ToolError
from saccade.geometry import Frame
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.picture_files import load_image
from saccade.tools import ToolBox, builtin_tools, tools_named
from saccade.types import BoxFound, ImageShown, MaskFound, PointFound, Text, ToolCall

__all__ = ["call"]


def call(name: str, arguments: str, *, image: Path | None, out: Path) -> list[str]:
    """What the tool returned, a line for each part; a picture is written to `out`.

    `arguments` is JSON with coordinates in pixels; the picture is called img_0. Raises ToolError
    for what the tool refuses, RecipeError for a tool that is not there.
    """
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"Arguments are no JSON: {error}.") from None
    if not isinstance(given, dict):
        raise ToolError(f"Arguments must be a JSON object, got {arguments[:80]}.")
    store = ImageStore()
    images = {}
    if image is not None:
        images["img_0"] = store.add(root_view(load_image(image)))
        given.setdefault("image", "img_0")
    aliases = {alias: t.name for t in builtin_tools().values() for alias in t.aliases}
    box = ToolBox(tools_named([aliases.get(name, name)]), store=store)
    [result] = asyncio.run(
        box.call_all(
            [ToolCall("call_0", name, given)],
            images=images,
            frame=lambda ref: Frame.pixels(ref.width, ref.height),
        )
    )
    lines = []
    for part in result.parts:
        if isinstance(part, ImageShown):
            try:
                store.view(part.image).pixels.save(out)
            except (OSError, ValueError) as error:
                raise StorageError(f"The picture can't be written to {out}: {error}.") from None
            lines.append(f"{part.name}: {part.image.width} x {part.image.height} pixels, in {out}")
        elif isinstance(part, BoxFound):
            lines.append(f"{part.label or 'box'} {part.box.as_tuple()} {part.score}")
        elif isinstance(part, PointFound):
            place = f"({part.point.x:.1f}, {part.point.y:.1f})"
            lines.append(f"{part.label or 'point'} {place} {part.score}")
        elif isinstance(part, MaskFound):
            what = f"{part.label} mask" if part.label else "mask"
            lines.append(f"{what} of {part.mask.area} pixels")
        elif isinstance(part, Text):
            lines.append(part.text)
    if result.failed:
        raise ToolError(" ".join(lines))
    return lines
