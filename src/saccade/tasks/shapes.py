"""The tasks `shapes_vsr` and `shapes_tally`: how two drawn shapes lie, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from saccade.errors import RecipeError
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.rewards import Rubric, answer
from saccade.types import Evidence, Sample
from saccade.worlds.shapes import COUNTS, SPLITS, SceneItem, World, item

__all__ = ["ShapesTally", "ShapesVsr"]


class _Shapes:
    """Scenes drawn on demand, each with one question and the boxes that its answer rests on."""

    name: ClassVar[str]
    world: ClassVar[World]
    stratum: ClassVar[str]

    def __init__(self) -> None:
        self.rubric = Rubric(((answer, 1.0),))

    def load(
        self, split: str, *, store: ImageStore, start: int = 0, count: int | None = None
    ) -> Sequence[Sample]:
        """Items `start` to `start + count` of a split; the pictures are put into the store."""
        self.size(split)
        if count is None:
            raise RecipeError(f"Split {split!r} of {self.name} has no end; say how many items.")
        return [
            self._sample(item(self.world, split, index), store)
            for index in range(start, start + count)
        ]

    def size(self, split: str) -> int | None:
        """None: scenes are drawn on demand."""
        if split not in SPLITS:
            raise RecipeError(
                f"Task {self.name} has no split {split!r}. Available: {', '.join(SPLITS)}."
            )
        return None

    def gold(self, sample: Sample) -> str:
        return sample.answer

    def wrong(self, sample: Sample) -> str:
        """A plausible answer that is not the right one."""
        if sample.kind != "count":
            return "false" if sample.answer == "true" else "true"
        return str((int(sample.answer) + 1) % len(COUNTS))

    def _sample(self, scene: SceneItem, store: ImageStore) -> Sample:
        image = store.add(root_view(scene.scene.image))
        return Sample(
            id=scene.id,
            question=scene.question,
            images=(image,),
            answer=scene.answer,
            evidence=tuple(Evidence(image, t.box, t.name) for t in scene.evidence),
            kind=scene.kind,
            stratum=self.stratum,
            meta=(("choices", str(scene.choices)),),
        )


class ShapesVsr(_Shapes):
    """Is one shape left of, right of, above, below, inside, touching or behind another?"""

    name = "shapes_vsr"
    world = "vsr"
    stratum = "relations"


class ShapesTally(_Shapes):
    """How many shapes of one name are there, 0 to 15?"""

    name = "shapes_tally"
    world = "tally"
    stratum = "counts"
