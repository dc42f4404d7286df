"""Models that back ends load: which are known, how they get here, and where they lie.

Invariant: weights come as safetensors, which hold numbers and can't run; the hub's code is never
run. Nothing is fetched but by `fetch`: a back end takes a folder, or what was fetched before.
Left out on purpose: licences are named and not checked; the number of threads, of which torch has
one for the whole process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from saccade.errors import RecipeError

__all__ = [
    "KNOWN",
    "Known",
    "device_of",
    "explained",
    "fetch",
    "folder_of",
    "kind_of",
    "read_processor",
    "read_weights",
]

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""Files of a model that are fetched; those in folders of the repository are not."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class Known(NamedTuple):
    """A model that a back end was written for."""

    backend: str
    model: str
    """Its id on the hub."""
    revision: str | None
    """The commit that is taken; None: the newest."""
    size_mb: int
    """Of its weights, about."""
    licence: str


KNOWN = (
    Known(
        "grounding-dino",
        "IDEA-Research/grounding-dino-tiny",
        "a2bb814dd30d776dcf7e30523b00659f4f141c71",
        689,
        "Apache-2.0",
    ),
    Known("grounding-dino", "IDEA-Research/grounding-dino-base", None, 933, "Apache-2.0"),
    Known(
        "grounding-dino",
        "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
        None,
        689,
        "see its page on the hub",
    ),
    Known(
        "sam",
        "facebook/sam-vit-base",
        "d0d9250bd6a38ebbb901aa29e8d37787e366f7be",
        375,
        "Apache-2.0",
    ),
    Known("sam", "facebook/sam-vit-large", None, 1250, "Apache-2.0"),
    Known("sam", "facebook/sam-vit-huge", None, 2564, "Apache-2.0"),
    Known(
        "vlm-points",
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "1b989f2c63999d7344135894d3cfa8f494116743",
        7510,
        "Qwen Research License: not for commercial use",
    ),
    Known(
        "vlm-points",
        "Qwen/Qwen2-VL-2B-Instruct",
        "895c3a49bc3fa70a340399125c650a463535e71c",
        4420,
        "Apache-2.0",
    ),
)
"""Of each back end the default first."""


def fetch(model: str, into: Path | None = None) -> Path:
    """Fetch a model from the hub, by `id` or `id@revision`; the folder where it lies.

    Without `into` that is the hub's cache, where back ends find it by its id. Raises RecipeError
    where the hub can't be reached or has no such model.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = _parts(model)
    if not _HUB_ID.fullmatch(name):
        raise RecipeError(
            f"{model!r} is no id of the hub's: give OWNER/NAME, or OWNER/NAME@COMMIT."
        )
    try:
        found = snapshot_download(
            name,
            revision=revision,
            local_dir=into,
            allow_patterns=list(WANTED),
            ignore_patterns=["*/*"],
        )
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise RecipeError(
            f"The hub has no model {model!r}, or shows it to nobody without an account: check the "
            "id, or download it yourself and give its folder as model."
        ) from None
    except (LocalEntryNotFoundError, ConnectionError, httpx.TransportError):
        raise RecipeError(
            f"Model {model!r} can't be fetched, since the hub can't be reached from here: download "
            "it on another machine, copy it over and give its folder as model."
        ) from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"Model {model!r} can't be fetched: {_first_line(error)}.") from error
    return Path(found)


def folder_of(model: str) -> Path:
    """Where a model lies on this machine: `model` itself where it is a folder, else what `fetch`
    brought for this id.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RecipeError(f"No model in folder {path.name!r}: config.json is missing.")
        return path
    name, revision = _parts(model)
    if not _HUB_ID.fullmatch(name):
        raise RecipeError(
            f"There is no model folder {model!r}: give one that holds config.json, or an id of the "
            "hub's, OWNER/NAME."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(WANTED),
            ignore_patterns=["*/*"],
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        raise RecipeError(
            f"Model {model!r} is no folder and was not fetched: run `saccade tools fetch {model}`, "
            "or give the folder of a copy as model."
        ) from None
    return Path(found)


def kind_of(folder: Path) -> str:
    """The type of a model, as its config names it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config["model_type"])
    except (OSError, ValueError, LookupError, TypeError):
        raise RecipeError(
            f"config.json in model folder {folder.name!r} names no model_type; fetch it again."
        ) from None


@contextmanager
def explained(model: str) -> Iterator[None]:
    """Whatever goes wrong while a model is loaded becomes a RecipeError that names it."""
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # ours are the only bars
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, LookupError, SafetensorError) as error:
        raise RecipeError(f"Model {model!r} can't be loaded: {_first_line(error)}.") from error


def read_weights(kind: Any, folder: Path, *, device: str, dtype: str = "float32") -> Any:
    """A model of one of transformers' classes, ready to be asked: only what lies in the folder is
    read, no pickle, and no code comes with it.
    """
    model = kind.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    return model.to(device).eval()


def read_processor(folder: Path) -> Any:
    """What prepares its inputs, by the same rules."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def device_of(name: str) -> str:
    """The device of that name, if there is one. Raises RecipeError otherwise."""
    import torch

    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise RecipeError(
            f"There is no device {name!r} here: "
            f"choose cpu{', or cuda' if torch.cuda.is_available() else ''}."
        ) from None
    return name


def _parts(model: str) -> tuple[str, str | None]:
    """Id and revision; of a known model the known one, unless another is asked for."""
    name, _, revision = model.partition("@")
    known = {k.model: k.revision for k in KNOWN}
    return name, revision or known.get(name)


def _first_line(error: Exception) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return said.strip().rstrip(".")
