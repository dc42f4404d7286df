"""What the vision tower made of pictures, kept by their keys.

Invariant: an image is encoded once while it is kept, and what was asked for last is kept longest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import nn

from saccade.engines.decoding.stats import EngineStats
from saccade.image_store import ImageStore
from saccade.models.forward import encode_images
from saccade.renderers import Renderer
from saccade.types import ImageRef

__all__ = ["Features"]


class Features:
    """Image key to features (tokens, D), within a bound of bytes."""

    def __init__(
        self,
        model: nn.Module,
        renderer: Renderer,
        *,
        store: ImageStore,
        stats: EngineStats,
        most_bytes: int,
        one_by_one: bool,
    ) -> None:
        self._model, self._renderer, self._store = model, renderer, store
        self._stats, self._most_bytes, self._one_by_one = stats, most_bytes, one_by_one
        self._held: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._held[key]

    def clear(self) -> None:
        self._held.clear()

    def encode(self, images: Iterable[ImageRef]) -> None:
        """Make sure of these images' features: one pass of the vision tower over those that are
        new, or one for each with `one_by_one`.
        """
        wanted = {i.key: i for i in images}
        for key in wanted:
            if key in self._held:
                self._held.move_to_end(key)
        new = [i for key, i in wanted.items() if key not in self._held]
        if not new:
            return
        with self._stats.phase("patches"):
            patches = [self._renderer.patches(i, self._store.view(i).pixels) for i in new]
        # Ordinary tensors, since a trainer may put them before layers that need gradients. One by
        # one with a barrier: rounding must not depend on which images were already known.
        with self._stats.phase("encode"), torch.inference_mode(False), torch.no_grad():
            size = 1 if self._one_by_one else len(new)
            for at in range(0, len(new), size):
                grids = [self._renderer.grid(i) for i in new[at : at + size]]
                found = encode_images(self._model, patches[at : at + size], grids)
                for image, features in zip(new[at : at + size], found, strict=True):
                    self._held[image.key] = features
        self._stats.images_encoded += len(new)
        held = sum(f.nbytes for f in self._held.values())
        while held > self._most_bytes and next(iter(self._held)) not in wanted:
            held -= self._held.popitem(last=False)[1].nbytes
