"""Renderers: one file for each model family, the only place that knows templates, special tokens
and frames.

A family is a class with `model_types` in a module of this package: a `Renderer`
(`saccade.renderers.api`). It is found by what `config.json` of a model says that it is.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from saccade.errors import RecipeError
from saccade.renderers.api import NotationName, Renderer
from saccade.renderers.folders import model_type_of

__all__ = ["Renderer", "families", "family_of", "renderer_for"]

_SHARED = ("api", "chatml", "folders", "pixels", "resize")
"""Modules that are no family."""


def families() -> dict[str, type[Renderer]]:
    """The renderer of each model type, in order."""
    found: dict[str, type[Renderer]] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name in _SHARED:
            continue
        inside = vars(importlib.import_module(f"{__name__}.{module.name}"))
        for kind in inside.values():
            if isinstance(kind, type) and "model_types" in vars(kind):
                found |= dict.fromkeys(kind.__dict__["model_types"], kind)
    return dict(sorted(found.items()))


def family_of(model_type: str) -> type[Renderer]:
    """The renderer of models of a type. Raises RecipeError where there is none."""
    known = families()
    if model_type not in known:
        raise RecipeError(
            f"Model type {model_type!r} has no renderer here; supported: {', '.join(known)}."
        )
    return known[model_type]


def renderer_for(
    folder: Path,
    *,
    min_image_tokens: int | None = None,
    max_image_tokens: int | None = None,
    notation: NotationName | None = None,
) -> Renderer:
    """The renderer of the model in a folder, under an image budget in tokens for one picture.

    Raises RecipeError where its type is unknown, or where something is missing or broken.
    """
    return family_of(model_type_of(folder)).from_pretrained(
        folder,
        min_image_tokens=min_image_tokens,
        max_image_tokens=max_image_tokens,
        notation=notation,
    )
