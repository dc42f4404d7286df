"""Vision towers: from the patches of a renderer to features that stand in the place of pads.

Invariant: modules and weights are those of transformers. The one substitution is exact: the patch
embedding's Conv3d, whose kernel covers its whole input, is applied as the matrix product that it
is. A feature is one row: what is embedded and, where a family adds features of several depths to
later layers too (deepstack), these behind it; so whoever keeps features by picture keeps all of
them.

Left out on purpose: videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from saccade.models.steady import LEAST_ROWS, is_steady
from saccade.renderers import family_of
from saccade.renderers.api import TowerKind

__all__ = ["Grids", "LinearPatchEmbed", "Tiles", "Tower", "tower_of", "with_linear_patches"]

TILES_PER_PASS = 32
"""A tile of InternVL is 1,025 tokens to its vision tower."""


class Tower(Protocol):
    """The part of a model that looks at pictures."""

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """Its modules, up to the features."""
        ...

    def encode(
        self,
        patches: Sequence[np.ndarray | torch.Tensor],
        grids: Sequence[tuple[int, int, int]],
    ) -> list[torch.Tensor]:
        """Features of each of at least one picture: (tokens, D), or (tokens, D * (1 + levels))."""
        ...


class Grids:
    """Patches of all pictures in one row, with a grid for each: Qwen2-VL and its successors."""

    def __init__(self, model: nn.Module) -> None:
        self._visual = model.model.visual

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        return (self._visual,)

    def encode(
        self,
        patches: Sequence[np.ndarray | torch.Tensor],
        grids: Sequence[tuple[int, int, int]],
    ) -> list[torch.Tensor]:
        visual = self._visual
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
        found = visual(stacked, grid_thw=grid)
        features = found.pooler_output  # (all tokens, D)
        if levels := getattr(found, "deepstack_features", None):
            features = torch.cat([features, *levels], dim=-1)
        return list(torch.split(features, sizes))[: len(grids)]


class Tiles:
    """Square tiles that see nothing of each other, a picture's features end to end: InternVL."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model.model

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        return (self._model.vision_tower, self._model.multi_modal_projector)

    def encode(
        self,
        patches: Sequence[np.ndarray | torch.Tensor],
        grids: Sequence[tuple[int, int, int]],
    ) -> list[torch.Tensor]:
        weight = self._model.multi_modal_projector.linear_1.weight
        tiles = torch.cat([torch.as_tensor(p) for p in patches]).to(weight.device)
        count = len(tiles)
        _, rows, columns = grids[0]
        tokens = int(rows * columns * self._model.config.downsample_ratio**2)
        if (spare := -(-LEAST_ROWS // tokens) - count) > 0 and is_steady(weight):
            # blank tiles keep few company where a tile is few tokens
            tiles = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, spare))
        found = [
            self._model.get_image_features(pixel_values=part, return_dict=True).pooler_output
            for part in tiles.split(TILES_PER_PASS)
        ]  # each (tiles, tokens, D)
        features = torch.cat(found)[:count]
        return [f.flatten(0, 1) for f in torch.split(features, [g[0] for g in grids])]


TOWERS: dict[TowerKind, type[Grids] | type[Tiles]] = {"grids": Grids, "tiles": Tiles}


def tower_of(model: nn.Module) -> Tower:
    """The vision tower of a model of a known family. Raises RecipeError for others."""
    return TOWERS[family_of(model.config.model_type).tower](model)


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


def with_linear_patches(model: nn.Module) -> nn.Module:
    """Replace the stock patch embedding in place, where it is a Conv3d; state dict names stay the
    same.
    """
    visual = getattr(model.model, "visual", None)
    if visual is not None and not isinstance(visual.patch_embed, LinearPatchEmbed):
        visual.patch_embed = LinearPatchEmbed(visual.patch_embed)
    return model
