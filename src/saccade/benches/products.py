"""The matrix products of one step of RL, and nothing else: what no code around them can save.

Invariant: every distinct token is computed once in the rollout and once, with its backward pass, in
the update; every distinct picture likewise. The products have the shapes that the step's counts
require; attention multiplies whole rectangles, as plain products can't skip the future.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from saccade.benches.play import Counts

__all__ = ["BareSeconds", "Work", "bare_seconds"]

ROWS = 2048
"""Tokens in one product, at most: as a pass of the update takes them."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one step requires."""

    prompts: int
    group: int
    counts: Counts
    pictures: int
    """Distinct ones, of questions and of glances."""
    patches: int
    """Of each picture."""
    is_vision_trained: bool

    @property
    def episodes(self) -> int:
        return self.prompts * self.group

    @property
    def distinct_tokens(self) -> int:
        _, first, observation, second = self.counts
        branch = first + observation + second
        return self.prompts * self.counts.prompt + self.episodes * branch

    @property
    def trained_tokens(self) -> int:
        return self.episodes * (self.counts.first_turn + self.counts.second_turn)


@dataclass(frozen=True, slots=True)
class BareSeconds:
    """Seconds of the products of one step."""

    pictures: float
    """The vision tower, forward, once for each distinct picture."""
    prefill: float
    """Prompts and observations, once."""
    decode: float
    """One token for every episode, as often as the turns are long."""
    update: float
    """Forward and backward of the distinct tokens and pictures."""
    cpu: float
    """Processor time of all of it, which a busy machine does not lengthen by waiting."""

    @property
    def rollout(self) -> float:
        return self.pictures + self.prefill + self.decode

    @property
    def whole(self) -> float:
        return self.rollout + self.update


Product = Callable[[], object]


class _Products:
    """Products on random numbers, made before the clock starts."""

    def __init__(self, model: nn.Module) -> None:
        weight = model.lm_head.weight
        self._device, self._dtype = weight.device, weight.dtype
        self._made: dict[tuple[int, ...], torch.Tensor] = {}

    def numbers(self, *shape: int) -> torch.Tensor:
        if shape not in self._made:
            made = torch.randn(shape, device=self._device, dtype=self._dtype)
            self._made[shape] = made
        return self._made[shape]

    def linear(self, weight: torch.Tensor, rows: int, *, backward: bool) -> Iterator[Product]:
        """x W^T, and with it dy W and dy^T x."""
        out, into = weight.shape
        for size in _pieces(rows):
            x, dy = self.numbers(size, into), self.numbers(size, out)
            yield lambda x=x: x @ weight.T
            if backward:
                yield lambda dy=dy: dy @ weight
                yield lambda x=x, dy=dy: dy.T @ x

    def attention(
        self, many: int, heads: int, queries: int, keys: int, size: int, *, backward: bool
    ) -> Iterator[Product]:
        """q k^T and p v of `many` sequences, and with them dp = do v^T, dv, dq, dk."""
        q, k = self.numbers(many, heads, queries, size), self.numbers(many, heads, keys, size)
        p = self.numbers(many, heads, queries, keys)
        yield lambda: q @ k.transpose(-1, -2)
        yield lambda: p @ k
        if backward:
            yield lambda: q @ k.transpose(-1, -2)
            yield lambda: p.transpose(-1, -2) @ q
            yield lambda: p @ k
            yield lambda: p.transpose(-1, -2) @ q

    def seconds(self, products: Iterator[Product]) -> tuple[float, float]:
        """Time and processor time of all products, which are made first."""
        made = list(products)
        self._wait()
        began, worked = time.perf_counter(), time.process_time()
        for product in made:
            product()
        self._wait()
        return time.perf_counter() - began, time.process_time() - worked

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _pieces(rows: int) -> list[int]:
    whole, rest = divmod(rows, ROWS)
    return [ROWS] * whole + ([rest] if rest else [])


@torch.no_grad()
def bare_seconds(model: nn.Module, work: Work) -> BareSeconds:
    """The time of the products of one step of that work with the model's weights."""
    products = _Products(model)
    parts = (
        products.seconds(_vision(model, products, work, backward=False)),
        products.seconds(_prefill(model, products, work)),
        products.seconds(_decode(model, products, work)),
        products.seconds(_update(model, products, work)),
    )
    return BareSeconds(*(seconds for seconds, _ in parts), cpu=sum(cpu for _, cpu in parts))


def _weights(module: nn.Module) -> list[torch.Tensor]:
    return [m.weight for m in module.modules() if isinstance(m, nn.Linear)]


def _language(
    model: nn.Module, products: _Products, tokens: int, *, backward: bool
) -> Iterator[Product]:
    """The linear layers behind the embedding; the head is not among them."""
    for weight in _weights(model.model.language_model):
        yield from products.linear(weight, tokens, backward=backward)


def _attention(
    model: nn.Module, products: _Products, many: int, queries: int, keys: int, *, backward: bool
) -> Iterator[Product]:
    """Of all layers. Queries that share keys are one product."""
    config = model.config.get_text_config()
    heads = config.num_key_value_heads
    shared = config.num_attention_heads // heads
    size = config.hidden_size // config.num_attention_heads
    for _ in range(config.num_hidden_layers):
        yield from products.attention(many, heads, shared * queries, keys, size, backward=backward)


def _vision(
    model: nn.Module, products: _Products, work: Work, *, backward: bool
) -> Iterator[Product]:
    visual = model.model.visual
    patches = work.pictures * work.patches
    embed = visual.patch_embed.proj.weight
    yield from products.linear(embed.reshape(embed.shape[0], -1), patches, backward=backward)
    merged = {id(w) for w in _weights(visual.merger)}
    for weight in _weights(visual):
        rows = patches // visual.spatial_merge_size**2 if id(weight) in merged else patches
        yield from products.linear(weight, rows, backward=backward)
    config = model.config.vision_config
    size = config.embed_dim // config.num_heads
    for _ in range(config.depth):
        yield from products.attention(
            work.pictures, config.num_heads, work.patches, work.patches, size, backward=backward
        )


def _prefill(model: nn.Module, products: _Products, work: Work) -> Iterator[Product]:
    prompt, first, observation, _ = work.counts
    head = model.lm_head.weight
    yield from _language(model, products, work.prompts * prompt, backward=False)
    yield from _attention(model, products, work.prompts, prompt, prompt, backward=False)
    yield from products.linear(head, work.prompts, backward=False)
    new = observation + 1  # the end of the turn was drawn and not fed
    keys = prompt + first + observation
    yield from _language(model, products, work.episodes * new, backward=False)
    yield from _attention(model, products, work.episodes, new, keys, backward=False)
    yield from products.linear(head, work.episodes, backward=False)


def _decode(model: nn.Module, products: _Products, work: Work) -> Iterator[Product]:
    """The first token of a turn is drawn from the prefill; each other one takes a step."""
    prompt, first, observation, second = work.counts
    for begin, turn in ((prompt, first), (prompt + first + observation, second)):
        for fed in range(1, turn):
            yield from _language(model, products, work.episodes, backward=False)
            yield from _attention(model, products, work.episodes, 1, begin + fed, backward=False)
            yield from products.linear(model.lm_head.weight, work.episodes, backward=False)


def _update(model: nn.Module, products: _Products, work: Work) -> Iterator[Product]:
    prompt = work.counts.prompt
    branch = sum(work.counts) - prompt
    yield from _language(model, products, work.distinct_tokens, backward=True)
    yield from _attention(model, products, work.prompts, prompt, prompt, backward=True)
    # all branches of a prompt read its keys in one product, and each reads its own
    yield from _attention(model, products, work.prompts, work.group * branch, prompt, backward=True)
    yield from _attention(model, products, work.episodes, branch, branch, backward=True)
    yield from products.linear(model.lm_head.weight, work.trained_tokens, backward=True)
    yield from _vision(model, products, work, backward=work.is_vision_trained)
