"""A call and what it gave, as plain JSON values beside pictures.

Invariant: pictures travel by key, each once: a call names the images that it is given, and whoever
runs it asks for those it does not have. What a tool derived from them comes back as its recipe
(operations on the given images), so its pixels are made where they are shown; only a picture that
is no function of the given ones travels back. A given image has no lineage on the other side: the
sender's own reference is put back in its place, so that nobody follows another's recipes.

Left out on purpose: how bytes get from here to there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from saccade.episode_json import ImageTable, images_from_rows, part_from_json, part_to_json
from saccade.geometry import Box, Point
from saccade.images import ImageView, again, root_view
from saccade.tools.running import Returned
from saccade.types import ImageRef

__all__ = ["Sent", "arguments_from_json", "given_view", "parts_from_json", "parts_to_json", "sent"]


class Sent(NamedTuple):
    """The arguments of a call, and the pictures that it needs."""

    arguments: dict[str, Any]
    """Plain JSON values; images by key, with their size."""
    images: dict[str, ImageView]
    """By key."""


def sent(arguments: Mapping[str, Any]) -> Sent:
    """Checked arguments, ready to travel."""
    images: dict[str, ImageView] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, ImageView):
            images[value.ref.key] = value
            return {"image": value.ref.key}
        if isinstance(value, Box):
            return {"box": list(value.as_tuple())}
        if isinstance(value, Point):
            return {"point": [value.x, value.y]}
        return [plain(v) for v in value] if isinstance(value, list) else value

    return Sent({name: plain(value) for name, value in arguments.items()}, images)


def arguments_from_json(
    arguments: Mapping[str, Any], images: Mapping[str, ImageView]
) -> dict[str, Any]:
    """What the tool is called with. Raises KeyError, TypeError or ValueError for what `sent` never
    made.
    """

    def typed(value: Any) -> Any:
        if isinstance(value, list):
            return [typed(v) for v in value]
        if not isinstance(value, dict):
            return value
        [(kind, inner)] = value.items()
        if kind == "image":
            return images[inner]
        if kind == "box":
            return Box(*inner)
        if kind == "point":
            return Point(*inner)
        raise ValueError(f"unknown argument {kind!r}")

    return {name: typed(value) for name, value in arguments.items()}


def given_view(key: str, picture: Image.Image) -> ImageView:
    """An image that was given: named by `key` between the two sides, and without lineage here."""
    return ImageView(ImageRef(key, *picture.size), _source=lambda: picture)


# --- what a call gave -----------------------------------------------------------------------------


def parts_to_json(
    parts: Sequence[Returned], given: Mapping[str, ImageView]
) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """Plain values, and the pictures that must travel with them, by key."""
    table = ImageTable()
    new: dict[str, Image.Image] = {}
    rows = []
    for part in parts:
        if isinstance(part, ImageView):
            made = (view for view in part.originals() if view.ref.key not in given)
            new |= {view.ref.key: view.pixels for view in made}
            rows.append({"type": "view", "image": table.index(part.ref)})
        else:
            rows.append(part_to_json(part, table))
    return {"images": table.rows, "parts": rows}, new


def parts_from_json(
    value: Mapping[str, Any], given: Mapping[str, ImageView], new: Mapping[str, Image.Image]
) -> list[Returned]:
    """What the call gave, on the images as the sender of the call knows them.

    Raises KeyError, TypeError, ValueError or IndexError for what `parts_to_json` did not make.
    """
    made = {key: root_view(picture) for key, picture in new.items()}
    views: list[ImageView] = []
    for ref in images_from_rows(value["images"]):
        if ref.derivation is None:
            views.append(given[ref.key] if ref.key in given else made[ref.key])
        else:
            rows = value["images"]
            views.append(again(ref, tuple(views[_number(p.parent, rows)] for p in ref.parts)))
    refs = [view.ref for view in views]
    return [
        views[row["image"]] if row["type"] == "view" else part_from_json(row, refs)
        for row in value["parts"]
    ]


def _number(ref: ImageRef, rows: Sequence[Mapping[str, Any]]) -> int:
    """Where an image stands in the table: its key is there once."""
    return next(n for n, row in enumerate(rows) if row["key"] == ref.key)
