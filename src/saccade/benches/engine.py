"""Measures how much work an engine does beyond what the numbers require.

Invariant: what is distinct is counted here, from the requests; what was computed is counted by the
engine. The time of a decode step and of its bare matrix products are taken in the same thread,
alternating, step by step.

Left out on purpose: tokens per second, which say more about the machine than about the engine.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from saccade.engines import Sampling, TurnRequest
from saccade.engines.decoding.stats import DecodeStep
from saccade.engines.torch import TorchEngine
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import ImageView, root_view
from saccade.models.tiny import SETTINGS, build_model, build_tokenizer
from saccade.models.vision import with_linear_patches
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.types import ImageShown, Message, Segment, Text
from saccade.worlds import charts

__all__ = ["bench_engine"]


@dataclass(frozen=True, slots=True)
class _Found:
    """What `bench_engine` found."""

    episodes: int
    prefill_tokens: int
    distinct_tokens: int
    """Tokens that nobody drew in this engine or that were drawn and not yet fed, each once."""
    images_encoded: int
    distinct_images: int
    decode_steps: int
    rows_per_step: float
    step_ms: float
    """Median time of a decode step: embedding, layers, logits, draws and bookkeeping."""
    bare_ms: float
    """Median time of the matrix products of such a step, and of nothing else."""
    threads: int

    @property
    def prefill_ratio(self) -> float:
        return self.prefill_tokens / self.distinct_tokens

    @property
    def image_ratio(self) -> float:
        return self.images_encoded / self.distinct_images

    @property
    def step_ratio(self) -> float:
        return self.step_ms / self.bare_ms

    def as_dict(self) -> dict[str, float]:
        """Every number by name, ratios included."""
        names = (*self.__slots__, "prefill_ratio", "image_ratio", "step_ratio")
        return {name: getattr(self, name) for name in names}


class _BareProducts:
    """The matrix products of a decode step: linear layers, and queries with keys with values."""

    def __init__(self, model: nn.Module) -> None:
        language, config = model.model.language_model, model.config.get_text_config()
        self._linear = [m for m in language.modules() if isinstance(m, nn.Linear)] + [model.lm_head]
        self._layers, self._heads = config.num_hidden_layers, config.num_key_value_heads
        self._groups = config.num_attention_heads // self._heads
        self._size = config.hidden_size // config.num_attention_heads
        self._weight = model.lm_head.weight
        self._held = self._random(0)
        self.step_seconds: list[float] = []
        self.seconds: list[float] = []

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self._weight.device, dtype=self._weight.dtype)

    def __call__(self, step: DecodeStep) -> None:
        """Take the time of the products of a step that just ended."""
        inputs = {m.in_features: self._random(step.rows, m.in_features) for m in self._linear}
        queries = self._random(step.rows, self._heads, self._groups, self._size)
        shape = (self._layers, 2, step.rows, self._heads, step.columns, self._size)
        if self._held.dim() < 6 or any(h < s for h, s in zip(self._held.shape, shape, strict=True)):
            self._held = self._random(*shape[:4], step.columns + 64, self._size)
        held = self._held[:, :, : step.rows, :, : step.columns]
        self._synchronize()
        begun = time.perf_counter()
        for layer in self._linear:
            F.linear(inputs[layer.in_features], layer.weight, layer.bias)
        for keys, values in held.unbind(0):
            torch.matmul(torch.matmul(queries, keys.transpose(-1, -2)), values)
        self._synchronize()
        self.seconds.append(time.perf_counter() - begun)
        self.step_seconds.append(step.seconds)

    def _synchronize(self) -> None:
        if self._weight.is_cuda:
            torch.cuda.synchronize(self._weight.device)


def bench_engine(
    model: nn.Module | None = None,
    renderer: Qwen2VLRenderer | None = None,
    *,
    prompts: int = 8,
    group: int = 8,
    turns: int = 2,
    max_tokens: int = 32,
    max_batch: int = 128,
    show: bool = True,
) -> dict[str, float]:
    """Play episodes about charts whose every turn is answered by a crop; every number by name.

    Without a model, the tiny one with its initial weights: nothing measured depends on them. `show`
    prints progress and a table.
    """
    if model is None or renderer is None:
        model, renderer = _initial()
    console = Console(quiet=not show)
    store = ImageStore()
    engine = TorchEngine(model, renderer, store=store, max_batch=max_batch)
    bare = engine.after_step = _BareProducts(model)
    distinct_tokens = 0
    images: set[str] = set()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("episodes", total=prompts * group)

        async def play(view: ImageView, request: TurnRequest) -> None:
            nonlocal distinct_tokens
            segments = request.segments
            images.update(i.key for i in segments[0].images)
            for number in range(turns):
                turn = await engine.turn(replace(request, segments=segments))
                if number + 1 == turns:
                    break
                shown = _look(view, store, number + request.seed[2])
                observation = renderer.observation(Message("tool", (Text("Look:"), shown)))
                images.add(shown.image.key)
                distinct_tokens += 1 + len(
                    observation.ids
                )  # the end of the turn was drawn, never fed
                sampled = Segment("sampled", turn.ids or (), turn.logprobs or ())
                segments = (*segments, sampled, observation)
            engine.release(request.episode)
            progress.advance(bar)

        async def play_all() -> None:
            nonlocal distinct_tokens
            waiting = []
            for number in range(prompts):
                view, request = _prompt(number, renderer, store, max_tokens=max_tokens)
                distinct_tokens += len(request.segments[0].ids)
                for rollout in range(group):
                    one = replace(
                        request, episode=f"{number}/{rollout}", seed=(0, str(number), rollout)
                    )
                    waiting.append(play(view, one))
            await asyncio.gather(*waiting)

        asyncio.run(play_all())
    found = _Found(
        episodes=prompts * group,
        prefill_tokens=engine.stats.prefill_tokens,
        distinct_tokens=distinct_tokens,
        images_encoded=engine.stats.images_encoded,
        distinct_images=len(images),
        decode_steps=engine.stats.decode_steps,
        rows_per_step=engine.stats.rows_per_step,
        step_ms=1e3 * median(bare.step_seconds),
        bare_ms=1e3 * median(bare.seconds),
        threads=torch.get_num_threads(),
    )
    console.print(_table(found))
    return found.as_dict()


def _initial() -> tuple[nn.Module, Qwen2VLRenderer]:
    words = "\n".join(charts.item("pretrain", n).question for n in range(20))
    renderer = Qwen2VLRenderer(build_tokenizer(words), SETTINGS)
    return with_linear_patches(build_model(renderer.tokenizer, seed=0)).eval(), renderer


def _prompt(
    number: int, renderer: Qwen2VLRenderer, store: ImageStore, *, max_tokens: int
) -> tuple[ImageView, TurnRequest]:
    item = charts.item("validation", number)
    view = root_view(item.drawing.image)
    shown = ImageShown(store.add(view), "img_1")
    messages = (
        Message("system", (Text("Answer the question about the chart."),)),
        Message("user", (shown, Text(item.question))),
    )
    sampling = Sampling(max_tokens=max_tokens)
    segments = (renderer.prompt(messages),)
    return view, TurnRequest("", messages, segments, (0, "", 0), sampling)


def _look(view: ImageView, store: ImageStore, number: int) -> ImageShown:
    """A crop, the same for the same number; episodes that share a number share the image."""
    left, top = 16 * (number % 8), 12 * (number // 8)
    crop = view.crop(Box(left, top, left + view.width / 2, top + view.height / 2))
    return ImageShown(store.add(crop), "img_2")


def _table(found: _Found) -> Table:
    table = Table(title=f"engine, {found.episodes} episodes, {found.threads} threads")
    for name in ("", "measured", "required", "ratio", "limit"):
        table.add_column(name, justify="left" if not name else "right")
    rows: tuple[tuple[Any, ...], ...] = (
        ("tokens prefilled / distinct new", found.prefill_tokens, found.distinct_tokens, "1.00"),
        ("images encoded / distinct", found.images_encoded, found.distinct_images, "1.00"),
        (
            f"decode step / its matrix products, ms ({found.rows_per_step:.0f} rows)",
            f"{found.step_ms:.2f}",
            f"{found.bare_ms:.2f}",
            "",
        ),
    )
    ratios = (found.prefill_ratio, found.image_ratio, found.step_ratio)
    for (name, measured, required, limit), ratio in zip(rows, ratios, strict=True):
        table.add_row(name, str(measured), str(required), f"{ratio:.2f}", limit)
    return table
