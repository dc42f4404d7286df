"""What a model folder says of its family, its tokenizer and its pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from saccade.errors import RecipeError

__all__ = ["Stored", "model_type_of", "stored"]


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored beside the weights of a model."""

    config: dict[str, Any]
    images: dict[str, Any]
    """Of its image processor."""
    tokenizer: Tokenizer


def model_type_of(folder: Path) -> str:
    """What `config.json` says the model is. Raises RecipeError where it says nothing."""
    _check(folder, "config.json")
    return str(_json_object(folder / "config.json").get("model_type"))


def stored(folder: Path, *, model_types: Sequence[str]) -> Stored:
    """What a model folder holds. Raises RecipeError where something is missing or broken, and for a
    model of another type than these.

    Settings of pictures stand in a file of their own, or, as transformers 5 saves them, within
    those of the processor.
    """
    within = folder / "processor_config.json"
    images: dict[str, Any] = {}
    if not (folder / "preprocessor_config.json").is_file() and within.is_file():
        images = _json_object(within).get("image_processor") or {}
    for name in ("tokenizer.json", "preprocessor_config.json", "config.json"):
        if name != "preprocessor_config.json" or not images:
            _check(folder, name)
    images = images or _json_object(folder / "preprocessor_config.json")
    config = _json_object(folder / "config.json")
    if config.get("model_type") not in model_types:
        raise RecipeError(
            f"Model type {config.get('model_type')!r} is another family's; this one has "
            f"{', '.join(model_types)}."
        )
    _json_object(folder / "tokenizer.json")
    return Stored(config, images, Tokenizer.from_file(str(folder / "tokenizer.json")))


def _check(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise RecipeError(f"Model folder {folder.name!r} has no {name}; save a processor with it.")


def _json_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file.name} of the model can't be read: {error}.") from None
    if not isinstance(found, dict):
        raise RecipeError(f"{file.name} of the model must hold an object; save the model again.")
    return found
