"""The task `gqa`: GQA (Hudson and Manning, 2019), one word or a few about things in a picture.

A JSON object of questions by id: `question`, `answer`, `imageId`, `types`, `annotations` (which
words stand for which objects of the scene graph). With the option `scene_graphs`, a file such as
`train_sceneGraphs.json`, the objects of a question are its evidence; its boxes are x, y, w, h in
pixels, as corner and size.

Invariant: an object that a question names is in the scene graph, or the row is refused.
Left out on purpose: the programs of the questions, and evidence for `testdev`, which has no graphs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, FiniteFloat

from saccade.errors import RecipeError
from saccade.geometry import Box
from saccade.tasks.published import (
    BadRow,
    Filled,
    Published,
    PublishedRow,
    Question,
    asked,
    json_members,
    json_object,
    validated,
)

__all__ = ["Gqa"]

Side = Annotated[FiniteFloat, Field(gt=0)]


class _Types(PublishedRow):
    structural: str = ""


class _Words(PublishedRow):
    question: dict[str, str] = Field(default_factory=dict)
    answer: dict[str, str] = Field(default_factory=dict)
    fullAnswer: dict[str, str] = Field(default_factory=dict)


class _Row(PublishedRow):
    question: Filled
    answer: Filled
    imageId: Filled
    types: _Types = _Types()
    annotations: _Words = _Words()


class _Object(PublishedRow):
    name: str
    x: FiniteFloat
    y: FiniteFloat
    w: Side
    h: Side


class _Graph(PublishedRow):
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    objects: dict[str, dict[str, object]]


class Gqa(Published):
    """Questions about things, their properties and how they stand to each other."""

    name = "gqa"
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("train_balanced_questions.json",),
        "validation": ("val_balanced_questions.json",),
        "test": ("testdev_balanced_questions.json",),
    }

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        images: str | os.PathLike[str] | None = None,
        skip_missing: bool = False,
        skip_bad: bool = False,
        check: str = "all",
        repo: str | None = None,
        revision: str | None = None,
        scene_graphs: str | os.PathLike[str] | None = None,
    ) -> None:
        """`scene_graphs` is a path of its own, not inside `path`."""
        super().__init__(
            path,
            images=images,
            skip_missing=skip_missing,
            skip_bad=skip_bad,
            check=check,
            repo=repo,
            revision=revision,
        )
        if scene_graphs is not None and not isinstance(scene_graphs, str | os.PathLike):
            raise RecipeError(
                f"Option 'scene_graphs' of task gqa must be a path, got {scene_graphs!r}."
            )
        self._graphs = None if scene_graphs is None else Path(scene_graphs)

    def read(self, path: Path) -> Iterator[Question | BadRow]:
        graphs = None
        if self._graphs is not None:
            graphs = json_members(self._graphs)
        return asked(json_object(path), _Row, partial(_question, graphs))


def _question(graphs: dict[str, object] | None, where: str, row: _Row) -> Question:
    boxes: tuple[tuple[Box, str], ...] = ()
    size = None
    if graphs is not None:
        graph = _graph(graphs, row.imageId)
        boxes = tuple(_box(graph, name) for name in _objects(row.annotations))
        size = (graph.width, graph.height)
    return Question(
        where=where,
        text=row.question,
        answer=row.answer,
        places=(f"{row.imageId}.jpg", f"images/{row.imageId}.jpg"),
        kind=row.types.structural,
        boxes=boxes,
        size=size,
    )


def _objects(words: _Words) -> list[str]:
    """Ids of the objects that a question and its answer name, each once, in their order."""
    told = [*words.question.values(), *words.answer.values(), *words.fullAnswer.values()]
    return list(dict.fromkeys(part for ids in told for part in ids.split(",") if part))


def _graph(graphs: dict[str, object], image: str) -> _Graph:
    if image not in graphs:
        raise ValueError(f"picture {image} has no scene graph; leave the option scene_graphs out")
    graph = validated(_Graph, image, graphs[image])
    if isinstance(graph, BadRow):
        raise ValueError(f"the scene graph of picture {image}: {'; '.join(graph.reasons)}")
    return graph


def _box(graph: _Graph, name: str) -> tuple[Box, str]:
    if name not in graph.objects:
        raise ValueError(f"names object {name}, which its scene graph has not")
    thing = validated(_Object, name, graph.objects[name])
    if isinstance(thing, BadRow):
        raise ValueError(f"object {name} of its scene graph: {'; '.join(thing.reasons)}")
    return Box(thing.x, thing.y, thing.x + thing.w, thing.y + thing.h), thing.name
