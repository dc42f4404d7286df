"""Reading back what a training run saved."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from saccade.errors import StorageError

__all__ = ["load_state"]

_DAMAGE = (OSError, RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError)
"""What torch raises for files that are torn or no checkpoint at all."""


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The state of a checkpoint folder; tensors only, nothing that could run.

    Raises StorageError where it can't be read, with the way on.
    """
    try:
        state: dict[str, Any] = torch.load(checkpoint / "state.pt", weights_only=True)
    except _DAMAGE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise StorageError(
            f"Checkpoint {checkpoint.name} can't be read ({reason}); delete its folder to go on "
            "from the one before."
        ) from error
    return state
