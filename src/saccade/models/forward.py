"""Forward passes over packed episodes, for models of every family, and loading from a folder.

Invariant: modules and weights are those of transformers. What differs between families is asked of
their renderer (`saccade.renderers`), of their vision tower (`models.vision`) and of their language
model (`models.flat`); nothing here knows a family by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForImageTextToText

from saccade.errors import RecipeError
from saccade.models.flat import Raised, check_language, flat_states, turns_by_axes
from saccade.models.trees import TreeAttention
from saccade.models.vision import tower_of, with_linear_patches
from saccade.renderers import family_of
from saccade.renderers.folders import model_type_of
from saccade.tokens import Batch, Pack

__all__ = [
    "attention_over",
    "encode_images",
    "hidden_states",
    "load_model",
    "predicting_states",
    "sampling_logprobs",
    "token_logits",
    "vision_parts",
]


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model of a known family from a local folder, in evaluation mode, with the exact patch
    embedding. Raises RecipeError where it is of none, or can't be loaded.
    """
    if not (folder / "config.json").is_file():
        raise RecipeError(f"No model in folder {folder.name!r}: config.json is missing.")
    family_of(model_type_of(folder))
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"The model in folder {folder.name!r} can't be loaded: {reason.rstrip('.')}."
        ) from None
    check_language(model.model.language_model)
    return with_linear_patches(model).eval()


def vision_parts(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that look at pictures, up to the features that the language model is given."""
    return tower_of(model).parts


def encode_images(
    model: nn.Module,
    patches: Sequence[np.ndarray | torch.Tensor],
    grids: Sequence[tuple[int, int, int]],
) -> list[torch.Tensor]:
    """Features of each image, a row for each token, as `models.vision` has them."""
    return tower_of(model).encode(patches, grids) if patches else []


def hidden_states(
    model: nn.Module, packed: Batch, features: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
) -> torch.Tensor:
    """Last hidden states (B, T, D) of packed trees, each image's features put in the place of its
    pads. The road of stock modules, which tests hold the packed one against.
    """
    embedded = model.get_input_embeddings()(packed.ids)  # (B, T, D)
    language, deep = model.model.language_model, {}
    if packed.images:
        ordered = (
            [features[i.key] for i in packed.images]
            if isinstance(features, Mapping)
            else list(features)
        )
        found = sum(len(f) for f in ordered)
        pads = int(packed.is_pad.sum())
        if found != pads:
            raise ValueError(f"{pads} image pads but {found} image features.")
        first, *levels = torch.cat(ordered).to(embedded.dtype).split(embedded.shape[-1], dim=-1)
        embedded = embedded.masked_scatter(packed.is_pad[..., None], first)
        if levels:
            deep = {"visual_pos_masks": packed.is_pad, "deepstack_visual_embeds": levels}
    return language(
        inputs_embeds=embedded,
        position_ids=packed.positions if turns_by_axes(language) else packed.positions[0],
        attention_mask=packed.sees,
        use_cache=False,
        **deep,
    ).last_hidden_state


def attention_over(model: nn.Module, packed: Pack) -> TreeAttention:
    """Who attends to whom in a pack, for models of this shape."""
    config = model.config.get_text_config()
    return TreeAttention(
        packed.spans,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        shared=config.num_key_value_heads,
        read=packed.read.cpu().numpy(),
        device=packed.ids.device,
    )


def predicting_states(
    model: nn.Module,
    packed: Pack,
    features: Mapping[str, torch.Tensor],
    *,
    attention: TreeAttention | None = None,
) -> torch.Tensor:
    """Last hidden states (N, D) that predict the trained tokens of a pack, each image's features
    put in the place of its pads.
    """
    embedded = model.get_input_embeddings()(packed.ids)  # (T, D)
    raised = None
    if packed.images:
        shown = torch.cat([features[i.key] for i in packed.images]).to(embedded.dtype)
        if len(shown) != len(packed.pads):
            raise ValueError(f"{len(packed.pads)} image pads but {len(shown)} image features.")
        first, *levels = shown.split(embedded.shape[-1], dim=-1)
        embedded = embedded.index_copy(0, packed.pads, first)
        raised = Raised(packed.pads, tuple(levels))
    found = flat_states(
        model.model.language_model,
        embedded,
        packed.positions,
        attention or attention_over(model, packed),
        read=packed.read,
        raised=raised,
    )
    return found.index_select(0, packed.source)


def token_logits(model: nn.Module, packed: Batch, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (N, V) that predict each trained token, and no others."""
    return model.lm_head(hidden[packed.row, packed.source])


def sampling_logprobs(
    logits: torch.Tensor, *, temperature: float, suppressed: torch.Tensor | None
) -> torch.Tensor:
    """Log-distribution (N, V) that ids are drawn from; temperature 0 is scored as 1. Engine and
    training share it.
    """
    scaled = logits.float() / (temperature if temperature > 0 else 1.0)
    if suppressed is not None and len(suppressed):
        scaled = scaled.index_fill(-1, suppressed, float("-inf"))
    return F.log_softmax(scaled, dim=-1)
