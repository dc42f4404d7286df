"""The language model over tokens that are laid end to end, without padding.

Invariant: modules and weights are those of transformers, called in its order; the result is the
stock one but for rounding. What differs is the road: tokens of all sequences stand in one row, who
attends to whom is told by an `Attention`, and the last layer computes an output only where one is
read. Norms and rotations are single operations with gradients of their own.

Left out on purpose: sliding windows and dropout, which no model is trained with here, and language
models of other builds than those of `BUILDS`, which are refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from saccade.errors import RecipeError

__all__ = ["Attention", "Raised", "check_language", "flat_states", "turns_by_axes"]

BUILDS = {
    "qwen2_vl_text": 3,
    "qwen2_5_vl_text": 3,
    "qwen3_vl_text": 3,
    "qwen2": 1,
    "qwen3": 1,
}
"""Language models whose layers are computed here, and the axes that their rotations are told."""


class Attention(Protocol):
    """Who attends to whom."""

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
    ) -> torch.Tensor:
        """What each query (Q, heads, size) makes of keys and values (T, shared heads, size):
        (Q, heads * size). Q is T, or in the last layer the number of outputs that are read.
        """
        ...


class Raised(NamedTuple):
    """What is added to image tokens after each of the first layers (deepstack)."""

    at: torch.Tensor
    """(P,) indices of image tokens"""
    levels: tuple[torch.Tensor, ...]
    """For each of these layers (P, D)."""


def check_language(language: Any) -> None:
    """Raises RecipeError for a language model that would be computed wrongly here."""
    config = language.config
    if config.model_type not in BUILDS:
        raise RecipeError(
            f"Language models of type {config.model_type!r} are not computed here; supported: "
            f"{', '.join(sorted(BUILDS))}."
        )
    strange = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if strange:
        raise RecipeError(
            f"The language model has layers of {', '.join(sorted(strange))}; only full attention "
            "is computed here."
        )


def turns_by_axes(language: Any) -> bool:
    """Whether its rotations are told time, row and column of a token, or its number alone."""
    return BUILDS[language.config.model_type] == 3


def flat_states(
    language: Any,
    embedded: torch.Tensor,
    positions: torch.Tensor,
    attention: Attention,
    *,
    read: torch.Tensor | None = None,
    raised: Raised | None = None,
) -> torch.Tensor:
    """Last hidden states (T, D) of embedded tokens (T, D) at positions (3, T), or only those of the
    tokens `read` (Q,), by index.

    `language` is the language model of a build in `BUILDS`.
    """
    if raised is not None and read is not None and len(raised.levels) >= len(language.layers):
        raise ValueError("The last layer has no image tokens that could be raised.")
    places = positions[:, None] if turns_by_axes(language) else positions[:1]
    cosine, sine = language.rotary_emb(embedded[None], places)  # (1, T, size)
    half = cosine.shape[-1] // 2  # the second half repeats the first
    cosine, sine = cosine[0, :, None, :half], sine[0, :, None, :half]  # (T, 1, size / 2)
    hidden = embedded
    for number, layer in enumerate(language.layers):
        own = layer.self_attn
        states = _normed(layer.input_layernorm, hidden)
        split = (-1, own.head_dim)
        key = _rotated(_alike(own, "k", own.k_proj(states).unflatten(-1, split)), cosine, sine)
        value = own.v_proj(states).unflatten(-1, split)
        if read is not None and number == len(language.layers) - 1:
            states, hidden = states.index_select(0, read), hidden.index_select(0, read)
            cosine, sine = cosine[read], sine[read]
        query = _rotated(_alike(own, "q", own.q_proj(states).unflatten(-1, split)), cosine, sine)
        seen = attention(number, query, key, value, scaling=own.scaling)
        hidden = hidden + own.o_proj(seen)
        hidden = hidden + layer.mlp(_normed(layer.post_attention_layernorm, hidden))
        if raised is not None and number < len(raised.levels):
            hidden = hidden.index_add(0, raised.at, raised.levels[number])
    return _normed(language.norm, hidden)


def _alike(own: Any, name: str, rows: torch.Tensor) -> torch.Tensor:
    """Queries or keys (T, heads, size), each brought to one length where the build does so."""
    norm = getattr(own, f"{name}_norm", None)
    return rows if norm is None else _normed(norm, rows)


def _normed(norm: Any, rows: torch.Tensor) -> torch.Tensor:
    """What an RMS norm of transformers makes of rows (..., D)."""
    if rows.dtype != torch.float32:
        result: torch.Tensor = norm(rows)  # it knows where to round
        return result
    if not torch.is_grad_enabled():
        return _scaled(rows, norm.weight, norm.variance_epsilon)[0]
    found: torch.Tensor = _Normed.apply(rows, norm.weight, norm.variance_epsilon)
    return found


def _scaled(
    rows: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x / rms(x) * w, and 1 / rms(x) (..., 1)."""
    square = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_()
    scale = square.div_(rows.shape[-1]).add_(epsilon).rsqrt_()
    return (rows * scale).mul_(weight), scale


def _rotated(rows: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rows (T, heads, size) turned by angles whose cosine and sine are (T, 1, size / 2)."""
    if not torch.is_grad_enabled():
        return _turned(rows, cosine, sine, back=False)
    found: torch.Tensor = _Rotated.apply(rows, cosine, sine)
    return found


class _Normed(torch.autograd.Function):
    """x / rms(x) * w, in float32."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        found, scale = _scaled(rows, weight, epsilon)
        ctx.save_for_backward(rows, weight, scale)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        [gradient] = gradients
        rows, weight, scale = ctx.saved_tensors
        product = gradient * rows
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = product.flatten(0, -2).t() @ scale.flatten()
        along = (product @ weight).unsqueeze(-1)  # (..., 1)
        along.mul_(scale).mul_(scale).div_(-rows.shape[-1])
        inner = torch.mul(gradient, weight, out=product)
        return inner.addcmul_(rows, along).mul_(scale), of_weight, None


class _Rotated(torch.autograd.Function):
    """A rotation, whose gradient is turned back."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(rows, cosine, sine, back=False)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        return _turned(gradients[0], cosine, sine, back=True), None, None


def _turned(
    rows: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, *, back: bool
) -> torch.Tensor:
    turned = torch.empty_like(rows, memory_format=torch.contiguous_format)
    first, second = rows.chunk(2, -1)
    sign = -1 if back else 1
    for half, own, other, way in zip(
        turned.chunk(2, -1), (first, second), (second, first), (-sign, sign), strict=True
    ):
        torch.mul(own, cosine, out=half)
        half.addcmul_(other, sine, value=way)
    return turned
