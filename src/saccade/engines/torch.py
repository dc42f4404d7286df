"""The engine that decodes with transformers modules in this process, on a CPU or a GPU.

Invariant: a token is computed once. The keys and values of an episode live until `release`, a turn
feeds only what is new since the last one, one prompt is prefilled once for all episodes that share
it, an image is encoded once. Draws depend on (seed of the request, index of the token in its
episode) and on nothing else; logits do not depend on the company in the batch beyond float
rounding.

How it stays lean: keys and values of the running rows lie in one slab, right-aligned, so that every
row writes its next token into the same column and attention reads a plain view; whoever leaves is
copied out, and the last row fills the hole. Joiners are prefilled as a staircase (longest first,
all ending in that same column), without padding.

One worker thread decodes, and runs only while there is work; the event loop and the tools stay
free.

Left out on purpose: top-p and top-k (their logprobs are not those of a training forward),
speculative decoding, and eviction of live episodes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache

from saccade.engines import Capabilities, TurnRequest
from saccade.errors import EngineError
from saccade.images import ImageStore
from saccade.models.qwen2vl import encode_images, sampling_logprobs
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.types import ImageRef, Segment, Turn

__all__ = ["DecodeStep", "EngineStats", "TorchEngine", "choose", "uniforms"]

BLOCK = 16
"""Ids that are drawn from as one, at first."""
PREFILL_TOKENS = 8192
"""Rows times columns of one forward pass at most, so that masks and activations stay small."""
SLACK = 256
"""Columns that a new slab leaves on either side of its cursor."""


@dataclass(slots=True)
class EngineStats:
    """What was computed since the last `reset`."""

    prefill_tokens: int = 0
    """Every position of every prefill pass; there is no padding to leave out."""
    prefill_passes: int = 0
    images_encoded: int = 0
    decode_steps: int = 0
    decode_rows: int = 0
    """Summed over decode steps."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase: patches, encode, prefill, decode, sample, move."""

    @property
    def rows_per_step(self) -> float:
        return self.decode_rows / max(1, self.decode_steps)

    def reset(self) -> None:
        self.prefill_tokens = self.prefill_passes = self.images_encoded = 0
        self.decode_steps = self.decode_rows = 0
        self.seconds = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


class DecodeStep(NamedTuple):
    """One token for every running row."""

    rows: int
    columns: int
    """Keys that each row attends to, those that its mask hides included."""
    seconds: float


# --- draws ----------------------------------------------------------------------------------------


def seed_keys(seed: tuple[int, str, int]) -> tuple[int, int]:
    """Two 64-bit keys of a seed: the beginning of its sha256."""
    digest = hashlib.sha256(json.dumps(seed).encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(first: np.ndarray, second: np.ndarray, index: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for each (keys, index): a counter-based generator, so order and company
    do not matter.

    SplitMix64 (Steele, Lea, Flood 2014) from the first key, mixed once more with the second. All
    (N,); keys uint64.
    """
    z = _mixed(first + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (_mixed(z ^ second) >> np.uint64(11)) * 2.0**-53


def choose(logprobs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The ids (N,) that draws (N,) in [0, 1) pick from log-distributions (N, V), by inverse CDF in
    float64.

    First among blocks of ids, then inside the block: a CDF over all of a vocabulary costs more than
    the layers of a small model. Never an id of probability zero.
    """
    probabilities = logprobs.exp()  # (N, V)
    if spare := -probabilities.shape[1] % BLOCK:
        probabilities = F.pad(probabilities, (0, spare))
    blocks = probabilities.unflatten(1, (-1, BLOCK))  # (N, blocks, BLOCK)
    weights = blocks.sum(-1, dtype=torch.float64)
    block, rest = _pick(weights, draws * weights.sum(-1))
    inside, _ = _pick(blocks[torch.arange(len(blocks), device=blocks.device), block].double(), rest)
    return block * BLOCK + inside


def _pick(weights: torch.Tensor, sought: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where `sought` (N,) falls in the running sum of weights (N, K) float64, and how far into that
    weight.

    The step of a weight 0 is empty, and what rounding put at the total or above is kept below it.
    """
    cdf = weights.cumsum(-1)
    below = torch.nextafter(cdf[:, -1], torch.zeros_like(sought))
    sought = torch.minimum(sought, below)[:, None]
    index = torch.searchsorted(cdf, sought, right=True).clamp_(max=cdf.shape[1] - 1)
    rest = sought - (cdf.gather(1, index) - weights.gather(1, index))
    return index[:, 0], rest[:, 0].clamp_min(0)


# --- keys and values ------------------------------------------------------------------------------


class _Slab(Cache):
    """Keys and values of the running rows: (layers, 2, rows, heads, columns, head size).

    `aim` says which rows and columns the next forward pass writes and from which column on it
    reads.
    """

    def __init__(self, config: Any, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        self._layers = int(config.num_hidden_layers)
        self._heads = int(config.num_key_value_heads)
        self._size = int(config.hidden_size // config.num_attention_heads)
        self._options = {"dtype": dtype, "device": device}
        self.data = self._blank(0, 0)

    def _blank(self, rows: int, columns: int) -> torch.Tensor:
        # Zeros, not empty: what is masked still gets multiplied by 0, and 0 * nan is nan.
        shape = (self._layers, 2, rows, self._heads, columns, self._size)
        return torch.zeros(shape, **self._options)  # type: ignore[arg-type]

    @property
    def rows(self) -> int:
        return self.data.shape[2]

    @property
    def columns(self) -> int:
        return self.data.shape[4]

    def resize(
        self, rows: int, columns: int, *, used_rows: int, source: slice, target: int
    ) -> None:
        """A slab of that size in which the used rows' columns `source` begin at column `target`."""
        old = self.data[:, :, :used_rows, :, source]
        self.data = self._blank(rows, columns)
        self.data[:, :, :used_rows, :, target : target + old.shape[4]] = old

    def aim(self, rows: slice, columns: slice, *, read_from: int) -> None:
        held = self.data[:, :, rows]
        keys, values = held[:, 0], held[:, 1]
        self._write_keys = keys[:, :, :, columns].unbind(0)
        self._write_values = values[:, :, :, columns].unbind(0)
        self._read_keys = keys[:, :, :, read_from : columns.stop].unbind(0)
        self._read_values = values[:, :, :, read_from : columns.stop].unbind(0)

    def update(  # type: ignore[override]
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: object,
        **__: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new (rows, heads, columns, size); give back views of what these rows may see."""
        self._write_keys[layer_idx].copy_(key_states)
        self._write_values[layer_idx].copy_(value_states)
        return self._read_keys[layer_idx], self._read_values[layer_idx]


class _Run(NamedTuple):
    """Tokens still to be fed."""

    ids: np.ndarray
    """(q,)"""
    positions: np.ndarray
    """(3, q)"""
    pads: np.ndarray
    """Indices of image pads in the run."""
    images: tuple[ImageRef, ...]
    next_start: int


class _Prefix(NamedTuple):
    """A prompt that was prefilled, to be continued by every episode that begins with it."""

    kv: torch.Tensor
    """(layers, 2, heads, tokens, size)"""
    logits: torch.Tensor
    """(V,) after its last token."""
    next_start: int


@dataclass(slots=True, eq=False)
class _Job:
    """One request that waits or runs."""

    request: TurnRequest
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[_Drawn]
    ids: np.ndarray
    """(T,) the whole episode so far."""
    image_keys: tuple[str, ...]
    next_start: int = 0


class _Drawn(NamedTuple):
    """What the worker hands to the event loop."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    version: int


@dataclass(slots=True, eq=False)
class _Episode:
    """A live episode. Between turns its keys and values are parked here."""

    job: _Job | None = None
    kv: torch.Tensor | None = None
    """(layers, 2, heads, tokens, size)"""
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """What `kv` was computed from."""
    image_keys: tuple[str, ...] = ()
    next_start: int = 0


class _Plan(NamedTuple):
    """How a job joins the batch: what it continues, and what is still to be fed (nothing, right
    after a prompt).
    """

    job: _Job
    kv: torch.Tensor | None
    prefix: tuple[object, ...] | None
    run: _Run


class _Posted(NamedTuple):
    """A message to the worker."""

    kind: str
    episode: str
    job: _Job | None = None


# --- engine ---------------------------------------------------------------------------------------


class TorchEngine:
    """A `PolicyEngine` on a transformers Qwen2-VL.

    With `barrier` the engine is deterministic: turns are admitted only when nobody runs and every
    live episode waits for one, in the order of their seeds, so that the shapes of batches depend on
    no clock. Announce episodes that start together by `expect`, or the first to arrive will not
    wait for the others.
    """

    def __init__(
        self,
        model: nn.Module,
        renderer: Qwen2VLRenderer,
        *,
        store: ImageStore,
        max_batch: int = 128,
        barrier: bool = False,
        device: str | torch.device | None = None,
        prefixes: int = 64,
        feature_bytes: int = 2**30,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}.")
        self.model = (model if device is None else model.to(device)).eval()
        self.renderer = renderer
        self.store = store
        self.max_batch = max_batch
        self.barrier = barrier
        self.version = 0
        self.stats = EngineStats()
        self.after_step: Callable[[DecodeStep], None] | None = None
        # called in the decoding thread
        self._prefixes_kept, self._feature_bytes = prefixes, feature_bytes
        table = model.get_input_embeddings().weight
        self._device, self._dtype = table.device, table.dtype
        unused = range(renderer.vocabulary, table.shape[0])
        self._suppressed = torch.tensor(
            sorted({*renderer.suppressed_ids, *unused}), dtype=torch.long, device=self._device
        )
        self._stop_ids = np.fromiter(renderer.stop_ids, dtype=np.int64)
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._episodes: dict[str, _Episode] = {}
        self._queue: deque[_Job] = deque()  # next to be admitted
        self._inbox: deque[_Posted] = deque()
        self._inbox_lock = threading.Lock()
        self._is_running = False
        self._step_lock = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saccade-engine")
        self._drop_keys_and_values()

    # --- the seam ---------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ids=True, logprobs=True, images=True, reproducible=True)

    async def turn(self, request: TurnRequest) -> Turn:
        """The next turn. Raises EngineError, with its cause, where decoding failed; the engine
        stays usable.
        """
        if not request.segments or request.segments[0].is_trained:
            raise EngineError(
                f"Episode {request.episode!r} has no prompt segment; render it first."
            )
        begun = time.perf_counter()
        loop = asyncio.get_running_loop()
        job = _Job(
            request,
            loop,
            loop.create_future(),
            ids=np.concatenate([np.asarray(s.ids, dtype=np.int64) for s in request.segments]),
            image_keys=tuple(i.key for s in request.segments for i in s.images),
        )
        self._post(_Posted("turn", request.episode, job))
        try:
            drawn = await job.future
        except asyncio.CancelledError:
            self._post(_Posted("cancel", request.episode, job))
            raise
        return Turn(
            text=self.renderer.decode(drawn.ids),
            finish="stop" if drawn.stopped else "length",
            ids=drawn.ids,
            logprobs=drawn.logprobs,
            policy_version=drawn.version,
            prompt_tokens=len(job.ids),
            seconds=time.perf_counter() - begun,
        )

    def release(self, episode: str) -> None:
        """Forget the episode; a turn of it that still runs is given up."""
        self._post(_Posted("release", episode))

    def expect(self, episodes: Iterable[str]) -> None:
        """Announce live episodes before their first request; with `barrier`, turns wait for all of
        them.
        """
        for episode in episodes:
            self._post(_Posted("expect", episode))

    def load(self, weights: object, version: int, *, same_vision: bool = False) -> None:
        """Take new weights (a state dict, or a module of the same kind) and drop what the old ones
        computed.

        `same_vision` promises that the vision tower did not change and keeps the features of
        images. The engine's own module, trained in place, may be given. Raises EngineError while a
        turn is being decoded.
        """
        with self._step_lock:
            self._read_inbox()
            if self._jobs or self._queue:
                raise EngineError(
                    f"Weights can't change while {len(self._jobs) + len(self._queue)} turns are "
                    "being decoded; await them first."
                )
            if weights is not self.model:
                self._copy_weights(weights)
            self.model.eval()
            self.version = version
            self._drop_keys_and_values()
            if not same_vision:
                self._features.clear()

    def features(self, images: Iterable[ImageRef]) -> dict[str, torch.Tensor]:
        """What the vision tower makes of the images: key to (tokens, D). Encoded once, shared with
        decoding.
        """
        wanted = {i.key: i for i in images}
        with self._step_lock:
            self._encode(wanted.values())
            return {key: self._features[key] for key in wanted}

    @property
    def live(self) -> tuple[str, ...]:
        """Keys of the episodes that were not released."""
        with self._step_lock:
            self._read_inbox()
            return tuple(self._episodes)

    @property
    def kept_bytes(self) -> int:
        """Memory of parked episodes and shared prompts."""
        with self._step_lock:
            self._read_inbox()
            kept = [e.kv for e in self._episodes.values()] + [p.kv for p in self._prefixes.values()]
            return sum(t.nbytes for t in kept if t is not None)

    def _copy_weights(self, weights: object) -> None:
        state = weights.state_dict() if isinstance(weights, nn.Module) else weights
        if not isinstance(state, Mapping):
            raise EngineError(
                f"Weights must be a state dict or a module, got {type(weights).__name__}."
            )
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        tied = {"lm_head.weight"} if self.model.config.tie_word_embeddings else set()
        if wrong := [*(set(missing) - tied), *unexpected]:
            raise EngineError(
                f"These weights are of another model; the first wrong name is {wrong[0]!r}."
            )

    def _drop_keys_and_values(self) -> None:
        config = self.model.config.get_text_config()
        self._slab = _Slab(config, dtype=self._dtype, device=self._device)
        self._cursor = 0  # the column that the next token of every row goes to
        self._jobs: list[_Job] = []  # by row
        self._prefixes: OrderedDict[tuple[object, ...], _Prefix] = OrderedDict()
        for episode in self._episodes.values():
            episode.kv = None
        self._make_row_arrays(8)

    # --- the worker -------------------------------------------------------------------------------

    def _post(self, posted: _Posted) -> None:
        with self._inbox_lock:
            self._inbox.append(posted)
            if not self._is_running:
                self._is_running = True
                self._worker.submit(self._work)

    def _work(self) -> None:
        """Decode until there is nothing to do. The one place where an unknown failure becomes an
        EngineError.
        """
        while True:
            with self._step_lock:
                self._read_inbox()
                try:
                    is_busy = self._step()
                except Exception as error:
                    self._fail(error)
                    is_busy = True
            if is_busy:
                continue
            with self._inbox_lock:
                if not self._inbox:
                    self._is_running = False
                    return

    def _read_inbox(self) -> None:
        while self._inbox:
            kind, key, job = self._inbox.popleft()
            if kind == "release":
                episode = self._episodes.pop(key, None)
                if episode is not None and episode.job is not None:
                    self._give_up(episode.job)
            elif kind == "cancel":
                if key in self._episodes and self._episodes[key].job is job:
                    self._episodes[key].job = None
                    self._give_up(job)
            elif kind == "expect":
                self._episodes.setdefault(key, _Episode())
            else:
                episode = self._episodes.setdefault(key, _Episode())
                if episode.job is not None:
                    self._answer(job, EngineError(f"Episode {key!r} asked for two turns at once."))
                    continue
                episode.job = job
                if not self.barrier:
                    self._queue.append(job)

    def _give_up(self, job: _Job | None) -> None:
        if job in self._jobs:
            self._leave(self._jobs.index(job))
        elif job in self._queue:
            self._queue.remove(job)
        self._answer(
            job, EngineError(f"Episode {job.request.episode!r} was released while its turn ran.")
        )

    def _fail(self, error: Exception) -> None:
        waiting = [e for e in self._episodes.values() if e.job is not None]
        self._queue.clear()
        self._drop_keys_and_values()
        for episode in waiting:
            job, episode.job = episode.job, None
            failure = EngineError(f"Decoding failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._answer(job, failure)

    @staticmethod
    def _answer(job: _Job, result: _Drawn | EngineError) -> None:
        def settle() -> None:
            if job.future.done():
                return
            if isinstance(result, EngineError):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

        if not job.loop.is_closed():
            job.loop.call_soon_threadsafe(settle)

    def _step(self) -> bool:
        """Admit who waits, decode one token for every row. False where there was nothing to do."""
        if self.barrier and not self._jobs and not self._queue:
            waiting = [e.job for e in self._episodes.values()]
            if all(job is not None for job in waiting):
                self._queue.extend(
                    sorted(waiting, key=lambda j: (j.request.seed, j.request.episode))
                )
        if not self._jobs and not self._queue:
            return False
        with torch.inference_mode():
            free = self.max_batch - len(self._jobs)
            if self._queue and free:
                self._admit([self._queue.popleft() for _ in range(min(free, len(self._queue)))])
            if self._jobs:
                self._decode()
        return True

    # --- rows -------------------------------------------------------------------------------------

    def _make_row_arrays(self, rows: int) -> None:
        """What the host knows of each row, as arrays: a decode step has no loop over rows."""
        self._start = np.zeros(rows, dtype=np.int64)  # first column that is its own
        self._position = np.zeros(rows, dtype=np.int64)  # M-RoPE position of its next token
        self._count = np.zeros(rows, dtype=np.int64)  # tokens drawn in this turn
        self._limit = np.zeros(rows, dtype=np.int64)
        self._keys = np.zeros((rows, 2), dtype=np.uint64)
        self._temperature = np.zeros(rows, dtype=np.float64)
        self._latest = np.zeros(rows, dtype=np.int64)  # drawn and not yet fed
        self._drawn_ids = np.zeros((rows, 64), dtype=np.int64)
        self._drawn_logprobs = np.zeros((rows, 64), dtype=np.float32)

    @property
    def _row_arrays(self) -> tuple[str, ...]:
        return (
            "_start", "_position", "_count", "_limit", "_keys", "_temperature", "_latest",
            "_drawn_ids", "_drawn_logprobs",
        )  # fmt: skip

    def _grow_row_arrays(self, rows: int, drawn: int) -> None:
        for name in self._row_arrays:
            old = getattr(self, name)
            wide = max(drawn, old.shape[1]) if name.startswith("_drawn") else None
            shape = (max(rows, old.shape[0]), *((wide,) if wide else old.shape[1:]))
            if shape != old.shape:
                new = np.zeros(shape, dtype=old.dtype)
                new[tuple(slice(0, s) for s in old.shape)] = old
                setattr(self, name, new)

    def _make_room(self, rows: int, before: int) -> None:
        """Room for that many rows, `before` columns before the cursor and one after it."""
        used = len(self._jobs)
        lowest = int(self._start[:used].min()) if used else self._cursor
        before = max(before, self._cursor - lowest)
        fits = self._cursor >= before and self._cursor < self._slab.columns
        if rows <= self._slab.rows and fits:
            return
        cursor, columns = self._cursor, self._slab.columns
        if not fits:
            cursor = before + SLACK
            columns = max(cursor + SLACK, columns if columns < 2 * (cursor + SLACK) else 0)
        height = self._slab.rows
        while height < rows:
            height = min(max(8, 2 * height), self.max_batch) if height < self.max_batch else rows
        target = cursor - (self._cursor - lowest)
        self._slab.resize(
            height, columns, used_rows=used, source=slice(lowest, self._cursor), target=target
        )
        self._start[:used] += cursor - self._cursor
        self._cursor = cursor
        self._grow_row_arrays(height, 0)

    def _leave(self, row: int) -> torch.Tensor:
        """Take a row out of the batch: its keys and values; the last row fills the hole."""
        cursor, data = self._cursor, self._slab.data
        kv = data[:, :, row, :, int(self._start[row]) : cursor].clone()
        last = len(self._jobs) - 1
        if row != last:
            begin = int(self._start[last])
            data[:, :, row, :, begin:cursor] = data[:, :, last, :, begin:cursor]
            for name in self._row_arrays:
                array = getattr(self, name)
                array[row] = array[last]
            self._jobs[row] = self._jobs[last]
        self._jobs.pop()
        return kv

    # --- joining ----------------------------------------------------------------------------------

    def _admit(self, jobs: Sequence[_Job]) -> None:
        """Bring jobs into the batch: encode their images, prefill what is new, draw their first
        token.
        """
        missing: dict[tuple[object, ...], _Run] = {}
        plans = [self._plan(job, missing) for job in jobs]
        self._encode(i for run in (*missing.values(), *(p.run for p in plans)) for i in run.images)
        prefixes = self._prefill_prefixes(missing) | {
            p.prefix: self._prefixes[p.prefix] for p in plans if p.prefix in self._prefixes
        }
        plans.sort(
            key=lambda p: len(p.run.ids), reverse=True
        )  # stable: ties stay in order of arrival
        bases = [p.kv if p.prefix is None else prefixes[p.prefix].kv for p in plans]
        begin, total = len(self._jobs), len(self._jobs) + len(plans)
        lengths = [b.shape[3] + len(p.run.ids) for b, p in zip(bases, plans, strict=True)]
        self._make_room(total, max(lengths))
        self._grow_row_arrays(total, max(p.job.request.sampling.max_tokens for p in plans))
        with self.stats.phase("move"):
            for row, (plan, base, length) in enumerate(
                zip(plans, bases, lengths, strict=True), begin
            ):
                self._enter(row, plan, base, length)
        runs = [p.run for p in plans if len(p.run.ids)]
        logits = [self._prefill(runs, begin=begin)] if runs else []
        logits += [prefixes[p.prefix].logits[None] for p in plans[len(runs) :]]
        self._jobs += [p.job for p in plans]
        self._draw(torch.cat(logits), slice(begin, total))
        while len(self._prefixes) > self._prefixes_kept:
            self._prefixes.popitem(last=False)

    def _plan(self, job: _Job, missing: dict[tuple[object, ...], _Run]) -> _Plan:
        """Continue what is parked where the request extends it; otherwise begin with the prompt,
        known or missing.
        """
        episode = self._episodes[job.request.episode]
        segments, fed = job.request.segments, len(episode.ids)
        kv, episode.kv = episode.kv, None
        if (
            kv is not None
            and fed < len(job.ids)
            and np.array_equal(job.ids[:fed], episode.ids)
            and job.image_keys[: len(episode.image_keys)] == episode.image_keys
            and (run := self._run(segments, cut=fed, start=episode.next_start)) is not None
        ):
            job.next_start = run.next_start
            return _Plan(job, kv, None, run)
        head = _head(segments)
        key = (tuple(s.ids for s in head), tuple(i.key for s in head for i in s.images))
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            start = self._prefixes[key].next_start
        else:
            if key not in missing:
                missing[key] = self._run(head, cut=0, start=0)
            start = missing[key].next_start
        run = self._run(segments[len(head) :], cut=0, start=start)
        job.next_start = run.next_start
        return _Plan(job, None, key, run)

    def _run(self, segments: Sequence[Segment], *, cut: int, start: int) -> _Run | None:
        """The tokens after the first `cut`, of which the first stands at `start`; None where
        pictures are cut.
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
                placed = self.renderer.positions(segment, start)
                positions.append(placed.ids)
                start = placed.next_start
                images += segment.images
            elif segment.images:
                return None
            else:
                positions.append(np.broadcast_to(start + np.arange(len(tail)), (3, len(tail))))
                start += len(tail)
        joined = np.concatenate(ids)
        pads = np.flatnonzero(joined == self.renderer.pad_id) if images else joined[:0]
        return _Run(joined, np.concatenate(positions, axis=1), pads, tuple(images), start)

    def _enter(self, row: int, plan: _Plan, base: torch.Tensor, length: int) -> None:
        request = plan.job.request
        start = self._cursor - length
        self._slab.data[:, :, row, :, start : start + base.shape[3]] = base
        self._start[row] = start
        self._position[row] = plan.job.next_start
        self._count[row] = 0
        self._limit[row] = request.sampling.max_tokens
        self._keys[row] = seed_keys(request.seed)
        self._temperature[row] = request.sampling.temperature

    def _encode(self, images: Iterable[ImageRef]) -> None:
        """Features of images that have none yet, in one pass of the vision tower (one each with
        `barrier`).
        """
        wanted = {i.key: i for i in images}
        for key in wanted:
            if key in self._features:
                self._features.move_to_end(key)
        new = [i for key, i in wanted.items() if key not in self._features]
        if not new:
            return
        with self.stats.phase("patches"):
            patches = [self.renderer.patches(i, self.store.view(i).pixels) for i in new]
        # Ordinary tensors, since a trainer may put them before layers that need gradients. One by
        # one with `barrier`: rounding must not depend on which images were already known.
        with self.stats.phase("encode"), torch.inference_mode(False), torch.no_grad():
            size = 1 if self.barrier else len(new)
            for at in range(0, len(new), size):
                grids = [self.renderer.grid(i) for i in new[at : at + size]]
                found = encode_images(self.model, patches[at : at + size], grids)
                for image, features in zip(new[at : at + size], found, strict=True):
                    self._features[image.key] = features
        self.stats.images_encoded += len(new)
        held = sum(f.nbytes for f in self._features.values())
        while held > self._feature_bytes and next(iter(self._features)) not in wanted:
            held -= self._features.popitem(last=False)[1].nbytes

    def _prefill_prefixes(
        self, missing: Mapping[tuple[object, ...], _Run]
    ) -> dict[tuple[object, ...], _Prefix]:
        """Prompts that nobody prefilled yet, in rows that are free for now."""
        if not missing:
            return {}
        ordered = sorted(missing.items(), key=lambda item: len(item[1].ids), reverse=True)
        begin = len(self._jobs)
        self._make_room(begin + len(ordered), len(ordered[0][1].ids))
        runs = [run for _, run in ordered]
        self._start[begin : begin + len(runs)] = [self._cursor - len(r.ids) for r in runs]
        logits = self._prefill(runs, begin=begin)
        found = {}
        for number, (key, run) in enumerate(ordered):
            start = self._cursor - len(run.ids)
            kv = self._slab.data[:, :, begin + number, :, start : self._cursor].clone()
            found[key] = self._prefixes[key] = _Prefix(kv, logits[number].clone(), run.next_start)
        return found

    def _prefill(self, runs: Sequence[_Run], *, begin: int) -> torch.Tensor:
        """Feed runs, longest first, to the rows from `begin`; all end at the cursor. Last logits
        (rows, V).

        A staircase: the longest rows go ahead alone until the next row begins, and so on; no column
        is padding.
        """
        count, width = len(runs), len(runs[0].ids)
        ids = np.zeros((count, width), dtype=np.int64)
        positions = np.zeros((3, count, width), dtype=np.int64)
        offsets = [width - len(run.ids) for run in runs]
        for row, (run, offset) in enumerate(zip(runs, offsets, strict=True)):
            ids[row, offset:] = run.ids
            positions[:, row, offset:] = run.positions
        embedded = self.model.get_input_embeddings()(self._there(ids))  # (rows, width, D)
        for row, (run, offset) in enumerate(zip(runs, offsets, strict=True)):
            if run.images:
                features = torch.cat([self._features[i.key] for i in run.images])
                embedded[row, self._there(run.pads + offset)] = features.to(embedded.dtype)
        placed = self._there(positions)
        with self.stats.phase("prefill"):
            hidden = embedded[:, :0]
            for left, right in pairwise([*sorted(set(offsets)), width]):
                rows = sum(offset <= left for offset in offsets)
                stride = max(1, PREFILL_TOKENS // rows)
                for at in range(left, right, stride):
                    columns = slice(at, min(at + stride, right))
                    hidden = self._forward(
                        embedded[:rows, columns],
                        placed[:, :rows, columns],
                        rows=slice(begin, begin + rows),
                        first_column=self._cursor - width + at,
                    )
                    self.stats.prefill_passes += 1
                    self.stats.prefill_tokens += rows * (columns.stop - columns.start)
            return self.model.lm_head(hidden[:, -1])

    # --- decoding ---------------------------------------------------------------------------------

    def _there(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _forward(
        self, embedded: torch.Tensor, positions: torch.Tensor, *, rows: slice, first_column: int
    ) -> torch.Tensor:
        """Hidden states (rows, q, D) of new tokens (rows, q, D) that go to the columns from
        `first_column`.
        """
        width = embedded.shape[1]
        starts = self._start[rows]
        lowest = int(starts.min())
        column = np.arange(lowest, first_column + width)
        hidden = column < starts[:, None, None]  # (rows, 1, columns)
        if width > 1:
            hidden = hidden | (column > np.arange(first_column, first_column + width)[:, None])
        mask = np.where(hidden, np.float32(-np.inf), np.float32(0))[
            :, None
        ]  # (rows, 1, q, columns)
        self._slab.aim(rows, slice(first_column, first_column + width), read_from=lowest)
        return self.model.model.language_model(
            inputs_embeds=embedded,
            position_ids=positions,
            attention_mask={"full_attention": self._there(mask).to(self._dtype)},
            past_key_values=self._slab,
            use_cache=True,
        ).last_hidden_state

    def _decode(self) -> None:
        """One token for every row."""
        begun = time.perf_counter()
        count = len(self._jobs)
        self._make_room(count, 0)
        with self.stats.phase("decode"):
            latest = self._there(self._latest[:count].copy())[:, None]
            embedded = self.model.get_input_embeddings()(latest)  # (rows, 1, D)
            placed = self._there(self._position[:count].copy())[None, :, None].expand(3, count, 1)
            rows = slice(0, count)
            hidden = self._forward(embedded, placed, rows=rows, first_column=self._cursor)
            logits = self.model.lm_head(hidden[:, 0])
        self._cursor += 1
        self._position[:count] += 1
        columns = self._cursor - int(self._start[:count].min())
        self._draw(logits, rows)
        self.stats.decode_steps += 1
        self.stats.decode_rows += count
        if self.after_step is not None:
            self.after_step(DecodeStep(count, columns, time.perf_counter() - begun))

    def _draw(self, logits: torch.Tensor, rows: slice) -> None:
        """Draw one token for each row from its logits (rows, V), and let go of who is done."""
        with self.stats.phase("sample"):
            temperatures, written = self._temperature[rows], self._count[rows].copy()
            index = self._cursor - self._start[rows]
            draws = uniforms(self._keys[rows, 0], self._keys[rows, 1], index)
            logprobs = self._distribution(logits, temperatures)
            ids = choose(logprobs, self._there(draws))
            if not temperatures.all():
                ids = torch.where(self._there(temperatures == 0), logprobs.argmax(-1), ids)
            chosen = logprobs.gather(1, ids[:, None])[:, 0]
            host = torch.stack([ids.double(), chosen.double()]).cpu().numpy()  # the one transfer
        if not np.isfinite(host).all():
            raise EngineError("The model's logits are not finite; its weights are broken.")
        new, at = host[0].astype(np.int64), np.arange(rows.start, rows.stop)
        self._drawn_ids[at, written] = new
        self._drawn_logprobs[at, written] = host[1]
        self._latest[rows] = new
        self._count[rows] += 1
        has_stopped = np.isin(new, self._stop_ids)
        is_done = has_stopped | (self._count[rows] >= self._limit[rows])
        for number in np.flatnonzero(is_done)[
            ::-1
        ]:  # from the last, so that holes are filled by who stays
            self._finish(rows.start + int(number), stopped=bool(has_stopped[number]))

    def _distribution(self, logits: torch.Tensor, temperatures: np.ndarray) -> torch.Tensor:
        """Log-distributions (N, V) that the rows draw from, each at its own temperature."""
        different = np.unique(temperatures)
        if len(different) == 1:
            return sampling_logprobs(
                logits, temperature=float(different[0]), suppressed=self._suppressed
            )
        logprobs = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        for temperature in different:
            alike = self._there(np.flatnonzero(temperatures == temperature))
            logprobs[alike] = sampling_logprobs(
                logits[alike], temperature=float(temperature), suppressed=self._suppressed
            )
        return logprobs

    def _finish(self, row: int, *, stopped: bool) -> None:
        """End the turn of a row: park its keys and values, tell who waits for it."""
        job, count = self._jobs[row], int(self._count[row])
        ids = self._drawn_ids[row, :count].copy()
        logprobs = self._drawn_logprobs[row, :count].copy()
        episode = self._episodes[job.request.episode]
        episode.job = None
        episode.next_start = int(self._position[row])
        episode.ids = np.concatenate([job.ids, ids[:-1]])  # the last one was never fed
        episode.image_keys = job.image_keys
        with self.stats.phase("move"):
            episode.kv = self._leave(row)
        self._answer(
            job, _Drawn(tuple(ids.tolist()), tuple(logprobs.tolist()), stopped, self.version)
        )


def _head(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """What stands before the model's first word."""
    return tuple(takewhile(lambda s: not s.is_trained, segments))
