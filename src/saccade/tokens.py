"""Episodes as tokens: ids, positions, who sees whom, what is trained.

Invariant: this is the only road from segments to tensors; SFT, RL and pretraining share it. A
token is trained iff the origin of its segment says so; image pads equal image features; positions
are the renderer's.

Episodes of one prompt are packed as a `Tree`: the prompt once (the trunk), each continuation as a
branch that sees the trunk and itself. A branch's positions start where the trunk's end, so it
reads exactly as if it were alone. Trees become a `Pack`, end to end and without padding, or a
`Batch`, padded to one length, which stock modules take as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from saccade.renderers import Renderer
from saccade.types import Episode, ImageRef, Segment

__all__ = [
    "Batch",
    "Flat",
    "Pack",
    "Span",
    "Tree",
    "batch",
    "episode_tree",
    "flatten",
    "pack",
    "tokenize",
]


@dataclass(frozen=True, slots=True)
class Tree:
    """A common beginning and its continuations. A single sequence is a tree of one branch."""

    trunk: tuple[Segment, ...]
    branches: tuple[tuple[Segment, ...], ...]


@dataclass(frozen=True, slots=True)
class Flat:
    """One tree as arrays over its T tokens: trunk first, then branch after branch."""

    ids: np.ndarray
    """(T,) int64"""
    positions: np.ndarray
    """(3, T) int64: M-RoPE."""
    owner: np.ndarray
    """(T,) 0 for the trunk, k for the k-th branch, from 1."""
    previous: np.ndarray
    """(T,) index of the token before it in its own sequence; -1 for the very first."""
    trained: np.ndarray
    """(T,) bool"""
    turn: np.ndarray
    """(T,) which turn of the model, from 0, for trained tokens; -1 elsewhere."""
    logprobs: np.ndarray
    """(T,) float32, as sampled; nan where nobody sampled."""
    images: tuple[ImageRef, ...]
    """In the order of their pads."""
    pad_id: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Trees padded to one length. B trees, T tokens, N trained tokens in all."""

    ids: torch.Tensor
    """(B, T) int64"""
    positions: torch.Tensor
    """(3, B, T) int64"""
    sees: torch.Tensor
    """(B, 1, T, T) bool: row attends to column."""
    is_pad: torch.Tensor
    """(B, T) bool: image pads, to be replaced by features in order."""
    row: torch.Tensor
    """(N,) tree of each trained token."""
    source: torch.Tensor
    """(N,) index of the token whose output predicts it."""
    target: torch.Tensor
    """(N,) the trained id."""
    branch: torch.Tensor
    """(N,) which branch of its tree it belongs to, from 0 (-1: the trunk)."""
    turn: torch.Tensor
    """(N,) which turn of the model it belongs to, from 0."""
    sampled_logprobs: torch.Tensor
    """(N,) as sampled; nan where demonstrated."""
    images: tuple[ImageRef, ...]

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        return replace(self, **_moved(self, device))


class Span(NamedTuple):
    """A run of tokens that see each other backwards, and all of a run before them."""

    start: int
    stop: int
    trunk_start: int
    """The run that all of them see; empty for a trunk."""
    trunk_stop: int

    @property
    def columns(self) -> int:
        """Tokens that its last one sees."""
        return self.stop - self.start + self.trunk_stop - self.trunk_start


@dataclass(frozen=True, slots=True)
class Pack:
    """Trees end to end: T tokens, of which Q predict the N trained ones. Tokens that no trained
    one is predicted from, at the end of a branch, are left out.
    """

    ids: torch.Tensor
    """(T,) int64"""
    positions: torch.Tensor
    """(3, T) int64"""
    pads: torch.Tensor
    """(P,) indices of image pads, to be replaced by features in order."""
    spans: tuple[Span, ...]
    """Who sees whom: every token is in one span."""
    read: torch.Tensor
    """(Q,) indices, ascending, of the tokens whose output predicts a trained one."""
    source: torch.Tensor
    """(N,) which of them predicts it."""
    target: torch.Tensor
    """(N,) the trained id."""
    tree: torch.Tensor
    """(N,) tree of each trained token."""
    branch: torch.Tensor
    """(N,) which branch of its tree it belongs to, from 0 (-1: the trunk)."""
    turn: torch.Tensor
    """(N,) which turn of the model it belongs to, from 0."""
    sampled_logprobs: torch.Tensor
    """(N,) as sampled; nan where demonstrated."""
    images: tuple[ImageRef, ...]

    def to(self, device: torch.device | str) -> Pack:
        """The same on a device."""
        return replace(self, **_moved(self, device))


def _moved(arrays: Batch | Pack, device: torch.device | str) -> dict[str, Any]:
    """All tensors of the fields, on a device."""
    values = {f.name: getattr(arrays, f.name) for f in fields(arrays)}
    return {n: v.to(device) for n, v in values.items() if isinstance(v, torch.Tensor)}


def episode_tree(episodes: Sequence[Episode]) -> Tree:
    """Episodes of one prompt as one tree: their first segment is the trunk."""
    for episode in episodes:
        if not episode.segments:
            raise ValueError(f"An episode of {episode.sample.id!r} has no tokens: tokenize it.")
    trunk = episodes[0].segments[0]
    for episode in episodes:
        prompt = episode.segments[0]
        if (prompt.ids, prompt.images) != (trunk.ids, trunk.images):
            raise ValueError(f"Episodes of {episode.sample.id!r} do not share their prompt.")
    return Tree((trunk,), tuple(e.segments[1:] for e in episodes))


def tokenize(episode: Episode, renderer: Renderer) -> Episode:
    """The episode with segments made from its messages, the model's turns as demonstrations.

    For episodes that no engine with ids made (an oracle, an API, a reviewer): trained by SFT,
    refused by RL.
    """
    messages = episode.messages
    first = next((i for i, m in enumerate(messages) if m.role == "assistant"), len(messages))
    segments = [renderer.prompt(messages[:first])]
    for message in messages[first:]:
        is_model = message.role == "assistant"
        segments.append(
            renderer.demonstrated(message.text) if is_model else renderer.observation(message)
        )
    return replace(episode, segments=tuple(segments))


def flatten(tree: Tree, renderer: Renderer) -> Flat:
    """The arrays of one tree."""
    ids: list[int] = []
    positions: list[np.ndarray] = []
    owner: list[int] = []
    previous: list[int] = []
    trained: list[bool] = []
    turn: list[int] = []
    logprobs: list[float] = []
    images: list[ImageRef] = []

    def lay(
        segments: Sequence[Segment], *, owned_by: int, start: int, last: int
    ) -> tuple[int, int]:
        turns = 0
        for segment in segments:
            if not segment.ids:
                continue
            placed = renderer.positions(segment, start)
            positions.append(placed.ids)
            start = placed.next_start
            previous.extend([last, *range(len(ids), len(ids) + len(segment.ids) - 1)])
            ids.extend(segment.ids)
            owner.extend([owned_by] * len(segment.ids))
            trained.extend([segment.is_trained] * len(segment.ids))
            turn.extend([turns if segment.is_trained else -1] * len(segment.ids))
            turns += segment.is_trained
            logprobs.extend(segment.logprobs or [float("nan")] * len(segment.ids))
            images.extend(segment.images)
            last = len(ids) - 1
        return start, last

    start, last = lay(tree.trunk, owned_by=0, start=0, last=-1)
    for number, branch in enumerate(tree.branches, start=1):
        lay(branch, owned_by=number, start=start, last=last)
    return Flat(
        ids=np.asarray(ids, dtype=np.int64),
        positions=np.concatenate(positions, axis=1),
        owner=np.asarray(owner, dtype=np.int64),
        previous=np.asarray(previous, dtype=np.int64),
        trained=np.asarray(trained, dtype=bool),
        turn=np.asarray(turn, dtype=np.int64),
        logprobs=np.asarray(logprobs, dtype=np.float32),
        images=tuple(images),
        pad_id=renderer.pad_id,
    )


def batch(flats: Sequence[Flat], *, length: int | None = None) -> Batch:
    """Trees padded on the right to one length (the longest, or the given one). Padding sees itself
    alone.
    """
    longest = max(len(f.ids) for f in flats)
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"A tree of {longest} tokens does not fit a batch of length {length}.")
    count = len(flats)
    ids = np.zeros((count, length), dtype=np.int64)
    positions = np.zeros((3, count, length), dtype=np.int64)
    owner = np.full((count, length), -1, dtype=np.int64)
    is_pad = np.zeros((count, length), dtype=bool)
    rows, sources, targets, branches, turns, sampled = [], [], [], [], [], []
    for b, flat in enumerate(flats):
        size = len(flat.ids)
        ids[b, :size] = flat.ids
        positions[:, b, :size] = flat.positions
        owner[b, :size] = flat.owner
        is_pad[b, :size] = flat.ids == flat.pad_id
        at = np.flatnonzero(flat.trained & (flat.previous >= 0))
        rows.append(np.full(len(at), b))
        sources.append(flat.previous[at])
        targets.append(flat.ids[at])
        branches.append(flat.owner[at] - 1)
        turns.append(flat.turn[at])
        sampled.append(flat.logprobs[at])
    owners = torch.from_numpy(owner)
    order = torch.arange(length)
    sees = (owners[:, :, None] == owners[:, None, :]) | (owners[:, None, :] == 0)
    sees &= order[None, :, None] >= order[None, None, :]
    return Batch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        sees=sees[:, None],
        is_pad=torch.from_numpy(is_pad),
        row=torch.from_numpy(np.concatenate(rows)),
        source=torch.from_numpy(np.concatenate(sources)),
        target=torch.from_numpy(np.concatenate(targets)),
        branch=torch.from_numpy(np.concatenate(branches)),
        turn=torch.from_numpy(np.concatenate(turns)),
        sampled_logprobs=torch.from_numpy(np.concatenate(sampled)),
        images=tuple(i for f in flats for i in f.images),
    )


def pack(flats: Sequence[Flat]) -> Pack:
    """Trees end to end. Raises ValueError where nothing is trained."""
    kept = [_kept(flat) for flat in flats]
    firsts = np.cumsum([0, *(int(k.sum()) for k in kept)])
    spans: list[Span] = []
    sources, at = [], []
    for flat, keep, first in zip(flats, kept, firsts.tolist(), strict=False):
        place = first + np.cumsum(keep) - 1  # where each kept token goes
        trained = np.flatnonzero(flat.trained & (flat.previous >= 0))
        at.append(trained)
        sources.append(place[flat.previous[trained]])
        owner = flat.owner[keep]
        edges = np.flatnonzero(np.diff(owner, prepend=-1, append=-1))
        trunk = int((owner == 0).sum())
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            seen = (first, first + trunk) if owner[start] else (first, first)
            spans.append(Span(first + start, first + stop, *seen))

    def trained_of(name: str) -> torch.Tensor:
        rows = [getattr(f, name)[a] for f, a in zip(flats, at, strict=True)]
        return torch.from_numpy(np.concatenate(rows))

    ids = np.concatenate([f.ids[k] for f, k in zip(flats, kept, strict=True)])
    is_pad = np.concatenate([(f.ids == f.pad_id)[k] for f, k in zip(flats, kept, strict=True)])
    read, source = np.unique(np.concatenate(sources), return_inverse=True)
    if not len(read):
        raise ValueError(f"None of the {len(ids)} tokens of {len(flats)} trees is trained.")
    trees = np.repeat(np.arange(len(flats)), [len(a) for a in at])
    places = np.concatenate([f.positions[:, k] for f, k in zip(flats, kept, strict=True)], axis=1)
    return Pack(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(places),
        pads=torch.from_numpy(np.flatnonzero(is_pad)),
        spans=tuple(spans),
        read=torch.from_numpy(read),
        source=torch.from_numpy(source),
        target=trained_of("ids"),
        tree=torch.from_numpy(trees),
        branch=trained_of("owner") - 1,
        turn=trained_of("turn"),
        sampled_logprobs=trained_of("logprobs"),
        images=tuple(i for f in flats for i in f.images),
    )


def _kept(flat: Flat) -> np.ndarray:
    """(T,) bool: the trunk, and each branch up to its last token that predicts a trained one.
    Pictures are kept whole, so a branch that ends with one is not cut.
    """
    keep = flat.owner == 0
    for branch in range(1, int(flat.owner.max()) + 1):
        own = np.flatnonzero(flat.owner == branch)
        is_read = np.isin(own, flat.previous[flat.trained])
        needed = np.flatnonzero(is_read | (flat.ids[own] == flat.pad_id))
        keep[own[: needed[-1] + 1 if len(needed) else 0]] = True
    return keep
