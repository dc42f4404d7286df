"""The engine that decodes with transformers modules in this process, on a CPU or a GPU.

Invariant: a token is computed once. The keys and values of an episode live until `release`, a turn
feeds only what is new since the last one, one prompt is prefilled once for all episodes that share
it, an image is encoded once. Draws depend on (seed of the request, index of the token in its
episode) and on nothing else; logits do not depend on the company in the batch (beyond float
rounding, where it can't be kept steady).

One worker thread decodes, and runs only while there is work; the event loop and the tools stay
free. Its parts are in `decoding`: rows and their slab, what is to be fed, forward passes, features
of images, draws.

Left out on purpose: speculative decoding, and eviction of live episodes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

from saccade.engines import Capabilities, TurnRequest
from saccade.engines.decoding.draws import choose, uniforms
from saccade.engines.decoding.features import Features
from saccade.engines.decoding.forward import Forward
from saccade.engines.decoding.jobs import Drawn, Episode, Job, Posted
from saccade.engines.decoding.rows import Rows, Slab
from saccade.engines.decoding.runs import Plan, Prefix, Run, plan_for
from saccade.engines.decoding.stats import DecodeStep, EngineStats
from saccade.errors import EngineError
from saccade.image_store import ImageStore
from saccade.models.forward import sampling_logprobs
from saccade.renderers import Renderer
from saccade.types import ImageRef, Turn

__all__ = ["TorchEngine"]


class TorchEngine:
    """A `PolicyEngine` on a transformers model of any family that has a renderer.

    With `barrier` the engine is deterministic: turns are admitted only when nobody runs and every
    live episode waits for one, in the order of their seeds, so that the shapes of batches depend on
    no clock. Announce episodes that start together by `expect`, or the first to arrive will not
    wait for the others.
    """

    def __init__(
        self,
        model: nn.Module,
        renderer: Renderer,
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
        model = model if device is None else model.to(device)
        self.model = model.eval()
        self.renderer = renderer
        self.store = store
        self.max_batch = max_batch
        self.barrier = barrier
        self.version = 0
        self.stats = EngineStats()
        self.after_step: Callable[[DecodeStep], None] | None = None
        """Called in the decoding thread."""
        self.before_draw: Callable[[str, int, torch.Tensor], None] | None = None
        """Called in the decoding thread with an episode, the index of the token that is drawn next
        in it, and the logits (V,).
        """
        self._prefixes_kept = prefixes
        table = model.get_input_embeddings().weight
        self._device, self._dtype = table.device, table.dtype
        self._suppressed = torch.tensor(
            renderer.never_sampled(table.shape[0]), dtype=torch.long, device=self._device
        )
        self._stop_ids = np.fromiter(renderer.stop_ids, dtype=np.int64)
        self._features = Features(
            self.model,
            renderer,
            store=store,
            stats=self.stats,
            most_bytes=feature_bytes,
            one_by_one=barrier,
        )
        self._episodes: dict[str, Episode] = {}
        self._queue: deque[Job] = deque()  # next to be admitted
        self._inbox: deque[Posted] = deque()
        self._inbox_lock = threading.Lock()
        self._is_running = False
        self._step_lock = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saccade-engine")
        self._drop_keys_and_values(slab=self._new_slab())

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
        job = Job.of(request)
        self._post(Posted("turn", request.episode, job))
        try:
            drawn = await job.future
        except asyncio.CancelledError:
            self._post(Posted("cancel", request.episode, job))
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
        self._post(Posted("release", episode))

    def expect(self, episodes: Iterable[str]) -> None:
        """Announce live episodes before their first request; with `barrier`, turns wait for all of
        them.
        """
        for episode in episodes:
            self._post(Posted("expect", episode))

    def load(self, weights: object, version: int, *, same_vision: bool = False) -> None:
        """Take new weights (a state dict, or a module of the same kind) and drop what the old ones
        computed.

        `same_vision` promises that the vision tower did not change and keeps the features of
        images. The engine's own module, trained in place, may be given. Raises EngineError while a
        turn is being decoded.
        """
        with self._step_lock:
            self._read_inbox()
            if waiting := len(self._rows.jobs) + len(self._queue):
                raise EngineError(
                    f"Weights can't change while {waiting} turns are being decoded"
                    "; await them first."
                )
            if weights is not self.model:
                self._copy_weights(weights)
            self.model.eval()
            self.version = version
            self._drop_keys_and_values(slab=self._rows.slab)
            if not same_vision:
                self._features.clear()

    def features(self, images: Iterable[ImageRef]) -> dict[str, torch.Tensor]:
        """What the vision tower makes of the images: key to (tokens, D). Encoded once, shared with
        decoding.
        """
        wanted = {i.key: i for i in images}
        with self._step_lock:
            self._features.encode(wanted.values())
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

    def _new_slab(self) -> Slab:
        config = self.model.config.get_text_config()
        return Slab(config, dtype=self._dtype, device=self._device)

    def _drop_keys_and_values(self, *, slab: Slab) -> None:
        self._rows = Rows(slab, most=self.max_batch)
        self._forward = Forward(self.model, self._rows, stats=self.stats)
        self._prefixes: OrderedDict[tuple[object, ...], Prefix] = OrderedDict()
        for episode in self._episodes.values():
            episode.kv = None

    # --- the worker -------------------------------------------------------------------------------

    def _post(self, posted: Posted) -> None:
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
                self._episodes.setdefault(key, Episode())
            else:
                episode = self._episodes.setdefault(key, Episode())
                if episode.job is not None:
                    job.answer(EngineError(f"Episode {key!r} asked for two turns at once."))
                    continue
                episode.job = job
                if not self.barrier:
                    self._queue.append(job)

    def _give_up(self, job: Job) -> None:
        if job in self._rows.jobs:
            self._rows.leave(self._rows.jobs.index(job))
        elif job in self._queue:
            self._queue.remove(job)
        job.answer(EngineError(f"Episode {job.request.episode!r} was released while its turn ran."))

    def _fail(self, error: Exception) -> None:
        waiting = [e for e in self._episodes.values() if e.job is not None]
        self._queue.clear()
        self._drop_keys_and_values(slab=self._new_slab())  # the old one may hold what is not finite
        for episode in waiting:
            job, episode.job = episode.job, None
            failure = EngineError(f"Decoding failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            job.answer(failure)

    def _step(self) -> bool:
        """Admit who waits, decode one token for every row. False where there was nothing to do."""
        if self.barrier and not self._rows.jobs and not self._queue:
            waiting = [e.job for e in self._episodes.values()]
            if all(job is not None for job in waiting):
                self._queue.extend(
                    sorted(waiting, key=lambda j: (j.request.seed, j.request.episode))
                )
        if not self._rows.jobs and not self._queue:
            return False
        with torch.inference_mode():
            free = self.max_batch - len(self._rows.jobs)
            if self._queue and free:
                self._admit([self._queue.popleft() for _ in range(min(free, len(self._queue)))])
            if self._rows.jobs:
                self._decode()
        return True

    # --- joining ----------------------------------------------------------------------------------

    def _admit(self, jobs: Sequence[Job]) -> None:
        """Bring jobs into the batch: encode their images, prefill what is new, draw their first
        token.
        """
        rows = self._rows
        missing: dict[tuple[object, ...], Run] = {}
        plans = [self._plan(job, missing) for job in jobs]
        self._features.encode(
            i for run in (*missing.values(), *(p.run for p in plans)) for i in run.images
        )
        prefixes = self._prefill_prefixes(missing) | {
            p.prefix: self._prefixes[p.prefix] for p in plans if p.prefix in self._prefixes
        }
        plans.sort(
            key=lambda p: len(p.run.ids), reverse=True
        )  # stable: ties stay in order of arrival
        bases = [p.kv if p.prefix is None else prefixes[p.prefix].kv for p in plans]
        begin, total = len(rows.jobs), len(rows.jobs) + len(plans)
        lengths = [b.shape[3] + len(p.run.ids) for b, p in zip(bases, plans, strict=True)]
        rows.make_room(total, before=max(lengths))
        rows.grow(total, drawn=max(p.job.request.sampling.max_tokens for p in plans))
        with self.stats.phase("move"):
            for row, (plan, base, length) in enumerate(
                zip(plans, bases, lengths, strict=True), begin
            ):
                rows.enter(row, plan.job, base, length)
        runs = [p.run for p in plans if len(p.run.ids)]
        logits = [self._forward.prefill(runs, begin=begin, features=self._features)] if runs else []
        logits += [prefixes[p.prefix].logits[None] for p in plans[len(runs) :]]
        rows.jobs += [p.job for p in plans]
        self._draw(torch.cat(logits), slice(begin, total))
        while len(self._prefixes) > self._prefixes_kept:
            self._prefixes.popitem(last=False)

    def _plan(self, job: Job, missing: dict[tuple[object, ...], Run]) -> Plan:
        episode = self._episodes[job.request.episode]
        found = plan_for(
            job, episode, known=self._prefixes, missing=missing, renderer=self.renderer
        )
        if found.prefix in self._prefixes:
            self._prefixes.move_to_end(found.prefix)
        return found

    def _prefill_prefixes(
        self, missing: Mapping[tuple[object, ...], Run]
    ) -> dict[tuple[object, ...], Prefix]:
        """Prompts that nobody prefilled yet, in rows that are free for now."""
        if not missing:
            return {}
        ordered = sorted(missing.items(), key=lambda item: len(item[1].ids), reverse=True)
        rows, begin = self._rows, len(self._rows.jobs)
        rows.make_room(begin + len(ordered), before=len(ordered[0][1].ids))
        runs = [run for _, run in ordered]
        rows.start[begin : begin + len(runs)] = [rows.cursor - len(r.ids) for r in runs]
        logits = self._forward.prefill(runs, begin=begin, features=self._features)
        found = {}
        for number, (key, run) in enumerate(ordered):
            start = rows.cursor - len(run.ids)
            kv = rows.slab.data[:, :, begin + number, :, start : rows.cursor].clone()
            found[key] = self._prefixes[key] = Prefix(kv, logits[number].clone(), run.next_start)
        return found

    # --- decoding ---------------------------------------------------------------------------------

    def _decode(self) -> None:
        """One token for every row."""
        begun = time.perf_counter()
        rows, count = self._rows, len(self._rows.jobs)
        rows.make_room(count, before=0)
        logits = self._forward.decode(count)
        columns = rows.cursor - int(rows.start[:count].min())
        self._draw(logits, slice(0, count))
        self.stats.decode_steps += 1
        self.stats.decode_rows += count
        if self.after_step is not None:
            self.after_step(DecodeStep(count, columns, time.perf_counter() - begun))

    def _draw(self, logits: torch.Tensor, at: slice) -> None:
        """Draw one token for each row from its logits (rows, V), and let go of who is done."""
        rows = self._rows
        if self.before_draw is not None:
            for row, values in zip(range(at.start, at.stop), logits, strict=True):
                index = int(rows.cursor - rows.start[row])
                self.before_draw(rows.jobs[row].request.episode, index, values)
        with self.stats.phase("sample"):
            temperatures, written = rows.temperature[at], rows.count[at].copy()
            index = rows.cursor - rows.start[at]
            draws = uniforms(rows.keys[at, 0], rows.keys[at, 1], index)
            logprobs = self._distribution(logits, temperatures)
            ids = choose(logprobs, self._forward.there(draws))
            if not temperatures.all():
                ids = torch.where(self._forward.there(temperatures == 0), logprobs.argmax(-1), ids)
            chosen = logprobs.gather(1, ids[:, None])[:, 0]
            host = torch.stack([ids.double(), chosen.double()]).cpu().numpy()  # the one transfer
        if not np.isfinite(host).all():
            raise EngineError("The model's logits are not finite; its weights are broken.")
        new, written_at = host[0].astype(np.int64), np.arange(at.start, at.stop)
        rows.drawn_ids[written_at, written] = new
        rows.drawn_logprobs[written_at, written] = host[1]
        rows.latest[at] = new
        rows.count[at] += 1
        has_stopped = np.isin(new, self._stop_ids)
        is_done = has_stopped | (rows.count[at] >= rows.limit[at])
        for number in np.flatnonzero(is_done)[
            ::-1
        ]:  # from the last, so that holes are filled by who stays
            self._finish(at.start + int(number), stopped=bool(has_stopped[number]))

    def _distribution(self, logits: torch.Tensor, temperatures: np.ndarray) -> torch.Tensor:
        """Log-distributions (N, V) that the rows draw from, each at its own temperature."""
        different = np.unique(temperatures)
        if len(different) == 1:
            return sampling_logprobs(
                logits, temperature=float(different[0]), suppressed=self._suppressed
            )
        logprobs = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        for temperature in different:
            alike = self._forward.there(np.flatnonzero(temperatures == temperature))
            logprobs[alike] = sampling_logprobs(
                logits[alike], temperature=float(temperature), suppressed=self._suppressed
            )
        return logprobs

    def _finish(self, row: int, *, stopped: bool) -> None:
        """End the turn of a row: park its keys and values, tell who waits for it."""
        rows = self._rows
        job, count = rows.jobs[row], int(rows.count[row])
        ids = rows.drawn_ids[row, :count].copy()
        logprobs = rows.drawn_logprobs[row, :count].copy()
        episode = self._episodes[job.request.episode]
        episode.job = None
        episode.next_start = int(rows.position[row])
        episode.ids = np.concatenate([job.ids, ids[:-1]])  # the last one was never fed
        episode.image_keys = job.image_keys
        with self.stats.phase("move"):
            episode.kv = rows.leave(row)
        job.answer(Drawn(tuple(ids.tolist()), tuple(logprobs.tolist()), stopped, self.version))
