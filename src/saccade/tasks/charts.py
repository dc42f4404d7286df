"""The task `charts`: questions about drawn charts, of which some can only be answered by looking
again.
"""

from __future__ import annotations

from collections.abc import Sequence

from saccade.errors import RecipeError
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.rewards import Rubric, answer
from saccade.tasks import CLUSTER
from saccade.types import Evidence, Sample
from saccade.worlds.chart_data import SPLITS, TITLES
from saccade.worlds.charts import ChartItem, item

__all__ = ["Charts"]


class Charts:
    """Charts of seven kinds; items are `easy` or `look` by the size of their evidence in the
    thumbnail.
    """

    name = "charts"

    def __init__(self, *, max_image_tokens: int = 16, factor: int = 28) -> None:
        """The budget of the picture that the model sees, in tokens of `factor` x `factor`
        pixels. Raises RecipeError where either is no number above 0.
        """
        for option, value in (("max_image_tokens", max_image_tokens), ("factor", factor)):
            if type(value) is not int or value < 1:
                raise RecipeError(
                    f"Option {option!r} of task charts must be a whole number of at least 1, "
                    f"got {value!r}."
                )
        self.rubric = Rubric(((answer, 1.0),))
        self.max_pixels = max_image_tokens * factor * factor

    def load(
        self, split: str, *, store: ImageStore, start: int = 0, count: int | None = None
    ) -> Sequence[Sample]:
        """Items `start` to `start + count` of a split; the pictures are put into the store."""
        self.size(split)
        if count is None:
            raise RecipeError(f"Split {split!r} of task charts has no end; say how many items.")
        return [
            self._sample(item(split, index, max_pixels=self.max_pixels), store)
            for index in range(start, start + count)
        ]

    def size(self, split: str) -> int | None:
        """None: charts are drawn on demand."""
        if split not in SPLITS:
            raise RecipeError(
                f"Task charts has no split {split!r}. Available: {', '.join(SPLITS)}."
            )
        return None

    def gold(self, sample: Sample) -> str:
        return sample.answer

    def wrong(self, sample: Sample) -> str:
        """A plausible answer that is not the right one."""
        if sample.answer.isdigit():
            return str(int(sample.answer) + 1)
        if sample.answer in TITLES:
            return TITLES[TITLES.index(sample.answer) - 1]
        marks, place = sample.answer.rsplit(" ", 1)
        return f"{marks} {2 if place == '1' else 1}"

    def _sample(self, chart: ChartItem, store: ImageStore) -> Sample:
        image = store.add(root_view(chart.drawing.image))
        evidence = tuple(
            Evidence(image, box.clip(image.width, image.height) or box, chart.spec.called(mark))
            for mark, box in chart.evidence
        )
        return Sample(
            id=chart.id,
            question=chart.question,
            images=(image,),
            answer=chart.answer,
            evidence=evidence,
            kind=chart.kind,
            stratum=chart.stratum,
            meta=(
                (CLUSTER, chart.spec.digest),  # questions on the same data, however drawn
                ("chart", chart.spec.chart),
                ("choices", str(chart.choices)),
            ),
        )
