"""Forward passes of a Qwen2-VL over packed episodes, and loading from a folder.

Invariant: modules and weights are those of transformers. The one substitution is exact: the patch
embedding's Conv3d, whose kernel covers its whole input, is applied as the matrix product that it
is.
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
from saccade.models.flat import flat_states
from saccade.models.steady import LEAST_ROWS, is_steady
from saccade.models.trees import TreeAttention
from saccade.tokens import Batch, Pack

__all__ = [
    "LinearPatchEmbed",
    "attention_over",
    "encode_images",
    "hidden_states",
    "load_model",
    "predicting_states",
    "sampling_logprobs",
    "token_logits",
    "with_linear_patches",
]


class LinearPatchEmbed(nn.Module):
    """transformers' `PatchEmbed` with the same weights, computed as one matrix product.

    On a CPU the stock Conv3d is about ten times slower for the same numbers (within float32
    rounding).
    """

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.proj = stock.proj

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight = self.proj.weight  # (D, 3, time, patch, patch)
        flat = hidden_states.to(weight.dtype).reshape(-1, weight[0].numel())
        return F.linear(flat, weight.reshape(weight.shape[0], -1), self.proj.bias)  # (patches, D)


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A Qwen2-VL or Qwen2.5-VL from a local folder, in evaluation mode, with the exact patch
    embedding.
    """
    if not (folder / "config.json").is_file():
        raise RecipeError(f"No model in folder {folder.name!r}: config.json is missing.")
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"The model in folder {folder.name!r} can't be loaded: {reason.rstrip('.')}."
        ) from None
    return with_linear_patches(model).eval()


def with_linear_patches(model: nn.Module) -> nn.Module:
    """Replace the stock patch embedding in place; state dict names stay the same."""
    visual = model.model.visual
    if not isinstance(visual.patch_embed, LinearPatchEmbed):
        visual.patch_embed = LinearPatchEmbed(visual.patch_embed)
    return model


def encode_images(
    model: nn.Module,
    patches: Sequence[np.ndarray | torch.Tensor],
    grids: Sequence[tuple[int, int, int]],
) -> list[torch.Tensor]:
    """Features of each image: (tokens, D). One pass of the vision tower over all of them."""
    if not patches:
        return []
    visual = model.model.visual
    device = visual.patch_embed.proj.weight.device
    merge = visual.spatial_merge_size**2
    sizes = [t * h * w // merge for t, h, w in grids]
    stacked = torch.cat([torch.as_tensor(p) for p in patches]).to(device)
    grid = torch.tensor(grids, dtype=torch.long, device=device)  # (images, 3)
    if sum(sizes) < LEAST_ROWS and is_steady(visual.patch_embed.proj.weight):
        # a blank picture keeps few tokens company: pictures don't see each other
        stacked = F.pad(stacked, (0, 0, 0, merge * LEAST_ROWS))
        blank = grid.new_tensor(
            [[1, visual.spatial_merge_size, visual.spatial_merge_size * LEAST_ROWS]]
        )
        grid, sizes = torch.cat([grid, blank]), [*sizes, LEAST_ROWS]
    features = visual(stacked, grid_thw=grid).pooler_output  # (all tokens, D)
    return list(torch.split(features, sizes))[: len(grids)]


def hidden_states(
    model: nn.Module, packed: Batch, features: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
) -> torch.Tensor:
    """Last hidden states (B, T, D) of packed trees, each image's features put in the place of its
    pads.
    """
    embedded = model.get_input_embeddings()(packed.ids)  # (B, T, D)
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
        embedded = embedded.masked_scatter(
            packed.is_pad[..., None], torch.cat(ordered).to(embedded.dtype)
        )
    return model.model.language_model(
        inputs_embeds=embedded,
        position_ids=packed.positions,
        attention_mask={"full_attention": packed.sees},
        use_cache=False,
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
    if packed.images:
        shown = torch.cat([features[i.key] for i in packed.images]).to(embedded.dtype)
        if len(shown) != len(packed.pads):
            raise ValueError(f"{len(packed.pads)} image pads but {len(shown)} image features.")
        embedded = embedded.index_copy(0, packed.pads, shown)
    found = flat_states(
        model.model.language_model,
        embedded,
        packed.positions,
        attention or attention_over(model, packed),
        read=packed.read,
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
