"""The task `vsr`: Visual Spatial Reasoning (Liu et al., 2023), is a caption true of a picture?

One JSON object a line: `image` (a file name of COCO 2017), `caption`, `label` (0 or 1), `relation`.

Left out on purpose: who annotated a row and how others voted, and the links to the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from saccade.tasks.published import (
    BadRow,
    Filled,
    Published,
    PublishedRow,
    Question,
    asked,
    json_lines,
)

__all__ = ["Vsr"]


class _Row(PublishedRow):
    image: Filled
    caption: Filled
    label: Literal[0, 1]
    relation: Filled


class Vsr(Published):
    """True or false: the first thing of a caption lies so and so to the second."""

    name = "vsr"
    ending = ".jsonl"
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("train.jsonl",),
        "validation": ("dev.jsonl",),
        "test": ("test.jsonl",),
    }

    def read(self, path: Path) -> Iterator[Question | BadRow]:
        return asked(json_lines(path), _Row, _question)


def _question(where: str, row: _Row) -> Question:
    return Question(
        where=where,
        text=f"True or false: {row.caption}",
        answer="true" if row.label else "false",
        places=tuple(f"{f}{row.image}" for f in ("", "images/", "train2017/", "val2017/")),
        kind=row.relation,
        stratum="relations",
        choices=2,
    )
