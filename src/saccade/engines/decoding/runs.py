"""What a job still has to feed: after its own parked turns, or after a prompt that many share.

Invariant: nothing that was computed is fed again, and the positions of what is fed go on where the
computed ones ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import torch

from saccade.engines.decoding.jobs import Episode, Job
from saccade.renderers import Renderer
from saccade.types import ImageRef, Segment

__all__ = ["Plan", "Prefix", "Run", "plan_for"]


class Run(NamedTuple):
    """Tokens still to be fed."""

    ids: np.ndarray
    """(q,)"""
    positions: np.ndarray
    """(3, q)"""
    pads: np.ndarray
    """Indices of image pads in the run."""
    images: tuple[ImageRef, ...]
    next_start: int


class Prefix(NamedTuple):
    """A prompt that was prefilled, to be continued by every episode that begins with it."""

    kv: torch.Tensor
    """(layers, 2, heads, tokens, size)"""
    logits: torch.Tensor
    """(V,) after its last token."""
    next_start: int


class Plan(NamedTuple):
    """How a job joins the batch: what it continues, and what is still to be fed (nothing, right
    after a prompt).
    """

    job: Job
    kv: torch.Tensor | None
    prefix: tuple[object, ...] | None
    run: Run


def plan_for(
    job: Job,
    episode: Episode,
    *,
    known: Mapping[tuple[object, ...], Prefix],
    missing: dict[tuple[object, ...], Run],
    renderer: Renderer,
) -> Plan:
    """Continue what is parked where the request extends it; otherwise begin with the prompt, known
    or missing. A prompt that is neither is added to `missing`.
    """
    segments, fed = job.request.segments, len(episode.ids)
    kv, episode.kv = episode.kv, None
    if (
        kv is not None
        and fed < len(job.ids)
        and np.array_equal(job.ids[:fed], episode.ids)
        and job.image_keys[: len(episode.image_keys)] == episode.image_keys
        and (run := _run(renderer, segments, cut=fed, start=episode.next_start)) is not None
    ):
        job.next_start = run.next_start
        return Plan(job, kv, None, run)
    head = tuple(takewhile(lambda s: not s.is_trained, segments))
    key = (tuple(s.ids for s in head), tuple(i.key for s in head for i in s.images))
    if key in known:
        start = known[key].next_start
    else:
        if key not in missing:
            missing[key] = _run(renderer, head, cut=0, start=0)
        start = missing[key].next_start
    run = _run(renderer, segments[len(head) :], cut=0, start=start)
    job.next_start = run.next_start
    return Plan(job, None, key, run)


def _run(renderer: Renderer, segments: Sequence[Segment], *, cut: int, start: int) -> Run | None:
    """The tokens after the first `cut`, of which the first stands at `start`; None where pictures
    are cut.
    """
    ids: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    positions: list[np.ndarray] = [np.zeros((3, 0), dtype=np.int64)]
    images: list[ImageRef] = []
    offset = 0
    for segment in segments:
        begin, offset = offset, offset + len(segment.ids)
        if offset <= cut:
            continue
        tail = np.asarray(segment.ids[max(0, cut - begin) :], dtype=np.int64)
        ids.append(tail)
        if begin >= cut:
            placed = renderer.positions(segment, start)
            positions.append(placed.ids)
            start = placed.next_start
            images += segment.images
        elif segment.images:
            return None
        else:
            positions.append(np.broadcast_to(start + np.arange(len(tail)), (3, len(tail))))
            start += len(tail)
    joined = np.concatenate(ids)
    pads = np.flatnonzero(joined == renderer.pad_id) if images else joined[:0]
    return Run(joined, np.concatenate(positions, axis=1), pads, tuple(images), start)
