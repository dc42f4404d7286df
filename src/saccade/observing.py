"""What a model is shown of its calls' results, by mode: the controls that say what looking gives.

Invariant: errors of the model are told in full in every mode. The record of a call (its gaze, and
what rewards see of it) is that of the true call; what stands in the message and in the sequence is
what was shown. A picture that was not shown in any form is in no record either, so it is not seen.

Left out on purpose: running calls, and how much of an observation fits (`saccade.rollout`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from saccade.errors import DataError
from saccade.geometry import Box, Frame
from saccade.image_store import ImageStore
from saccade.tasks import CLUSTER
from saccade.types import BoxNamed, ImageRef, ImageShown, Part, Sample, Text, ToolResult

__all__ = [
    "ACKNOWLEDGED",
    "Observation",
    "acknowledged",
    "blackened",
    "in_words",
    "partner_of",
    "partners_among",
    "pictures_of",
    "recorded",
    "swapped",
]

Observation = Literal["image", "text", "none", "swapped", "black"]
"""`image`: pictures as they are. `text`: a sentence with their name, size and region. `none`: an
acknowledgement in the place of everything. `swapped`: what the same call returns on another
sample's pictures. `black`: pictures of the same size and name, all black.
"""
ACKNOWLEDGED = "Done."


# --- forms of a result ----------------------------------------------------------------------------


def acknowledged(result: ToolResult) -> ToolResult:
    """One word in the place of everything that came back."""
    return result if result.failed else replace(result, parts=(Text(ACKNOWLEDGED),))


def in_words(
    result: ToolResult, *, originals: Mapping[str, ImageRef], frame: Callable[[ImageRef], Frame]
) -> ToolResult:
    """Pictures replaced by a sentence with name, size and region: where they lie on the originals
    that have a name, in the model's own coordinates.

    Of a picture inside the box that the call asked for, that box is told: how much of it the tool
    cut off was read from the pixels.
    """
    names = {image.key: name for name, image in originals.items()}

    def told(part: Part) -> Part:
        if not isinstance(part, ImageShown):
            return part
        (width, height), regions = _untrimmed(part.image, result.named)
        places = [
            f"{_numbers(frame(root).encode_box(bounds))} of {names[root.key]}"
            for root, bounds in regions
            if root.key in names
        ]
        where = f" at {' and '.join(places)}" if places else ""
        return Text(f"{part.name}: a picture of {width} x {height} pixels{where}.")

    return replace(result, parts=tuple(told(p) for p in result.parts))


def _untrimmed(
    image: ImageRef, named: Sequence[BoxNamed]
) -> tuple[tuple[int, int], list[tuple[ImageRef, Box]]]:
    """Size and regions of a picture; of one that is a part of the single box that its call named,
    those that the whole box would have.
    """
    size = image.width, image.height
    regions = [*image.on_roots()]
    asked = [place for one in named[:1] for place in one.image.on_roots(one.box)]
    if len(named) != 1 or len(regions) != 1 or len(asked) != 1:
        return size, regions
    [(root, shown)], [(other, whole)] = regions, asked
    pixel = whole.width / named[0].box.width  # of the named image, on its original
    inside = shown.intersection(whole.expand(pixel))  # a region has whole pixels, its box has not
    is_part = root.key == other.key and inside is not None and inside.area > 0.99 * shown.area
    if not is_part:
        return size, regions
    across, down = whole.width / shown.width, whole.height / shown.height
    return (round(image.width * across), round(image.height * down)), asked


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{round(v, 3):g}" for v in values) + "]"


def blackened(result: ToolResult, *, store: ImageStore) -> ToolResult:
    """The same with all pixels of pictures black; they remember what they were made from."""
    return replace(result, parts=tuple(_black(p, store) for p in result.parts))


def _black(part: Part, store: ImageStore) -> Part:
    if not isinstance(part, ImageShown):
        return part
    return ImageShown(store.add(store.view(part.image).black()), part.name)


def swapped(result: ToolResult, other: ToolResult, *, store: ImageStore) -> ToolResult:
    """What `other`, the same call on another sample's pictures, returned in the place of `result`.

    Its pictures stand under the names of the true ones; where it has fewer or failed, a black
    picture of the true size stands there. Nothing else of a true result is told, since it was read
    off the true picture. A failed result is told as it is.
    """
    if result.failed:
        return result
    parts = () if other.failed else other.parts
    theirs = iter([p for p in parts if isinstance(p, ImageShown)])
    shown: list[Part] = []
    for part in result.parts:
        if isinstance(part, ImageShown):
            found = next(theirs, None)
            shown.append(
                _black(part, store) if found is None else ImageShown(found.image, part.name)
            )
    shown += [p for p in parts if not isinstance(p, ImageShown)]
    return replace(result, parts=tuple(shown) or (Text(ACKNOWLEDGED),))


def recorded(result: ToolResult, shown: ToolResult, *, mode: Observation) -> ToolResult:
    """The record of a call of which the model was shown `shown`.

    Where other pixels were shown than the call returned, the record keeps what it returned, less
    the pictures in whose place no picture was shown.
    """
    if mode not in ("swapped", "black"):
        return shown
    names = {p.name for p in shown.parts if isinstance(p, ImageShown)}
    parts = tuple(
        Text(f"{p.name} was not shown.") if isinstance(p, ImageShown) and p.name not in names else p
        for p in result.parts
    )
    return replace(result, parts=parts)


# --- partners -------------------------------------------------------------------------------------


def pictures_of(partner: Sample, sample: Sample) -> dict[str, ImageRef]:
    """The partner's pictures under the names of the sample's own, from the first again where it has
    fewer. Raises ValueError where it has none.
    """
    if not partner.images:
        raise ValueError(f"Partner {partner.id!r} of sample {sample.id!r} has no picture.")
    count = len(partner.images)
    return {f"img_{n}": partner.images[n % count] for n in range(len(sample.images))}


def partner_of(sample: Sample, others: Iterable[Sample]) -> Sample:
    """The first of `others` whose pictures are different ones: several questions may share a chart.

    Raises DataError where there is none.
    """
    own = {image.key for image in sample.images}
    cluster = dict(sample.meta).get(CLUSTER)
    for other in others:
        apart = own.isdisjoint(image.key for image in other.images)
        alike = cluster is not None and dict(other.meta).get(CLUSTER) == cluster
        if other.images and apart and not alike:
            return other
    raise DataError(
        f"No other sample has pictures that differ from those of {sample.id!r}, and observation "
        "swapped shows them: take more samples or another observation."
    )


def partners_among(samples: Sequence[Sample], *, mode: Observation) -> list[Sample]:
    """For each sample the next one with other pictures, from the first again after the last; empty
    unless the mode swaps.
    """
    if mode != "swapped":
        return []
    order = list(samples)
    return [partner_of(s, order[k + 1 :] + order[:k]) for k, s in enumerate(order)]
