"""How much a model looks at the picture while it thinks again: the share of its own attention that
goes to image tokens as it writes `<rethink>`, behind its chain with boxes and behind the same chain
without.

After the analysis of GRIT (2025), which compares chains with boxes and chains whose boxes were
taken out. A chain without boxes is shorter, and a shorter text leaves more attention to everything
else; so there is a third form, with dots in the place of each box, as many as it had tokens. Behind
all three stands the same second thought, so that the tokens that look are the same ones.

Invariant: attention is the model's own, of the stock modules; heads, and the tokens that are
written, count alike.

Left out on purpose: what a share of attention means for an answer. `saccade eval --control` changes
boxes and pixels and looks at what comes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from rich.table import Table

from saccade.assemble import (
    Policy,
    check_same_start,
    device_of,
    image_features,
    load_policy,
    setup_for,
    task_of,
)
from saccade.config import Recipe
from saccade.controls import chain_and_rethink
from saccade.dialects.notations import Notation
from saccade.engines import Sampling
from saccade.errors import RecipeError
from saccade.evaluate import Interval, mean_interval
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.models.forward import hidden_states
from saccade.progress import progress
from saccade.recipe_files import check_same_run, dump_recipe
from saccade.renderers import Renderer
from saccade.rollout import Failures, SegmentRenderer, Setup, check_room, rollout
from saccade.run_folder import RunFolder
from saccade.tokens import Tree, batch, flatten
from saccade.types import Episode, ImageRef, Segment

__all__ = ["FORMS", "Form", "Look", "format_attention", "forms_of", "look", "run", "under"]

Form = Literal["boxes", "dots", "stripped"]
FORMS: tuple[Form, ...] = get_args(Form)
CHUNK = 64
"""Samples whose pictures are in memory together."""
FINE = 8
"""Points along each side of an image token, to see how much of it lies under boxes."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a model attended to while it wrote a second thought."""

    image: tuple[float, ...]
    """Share of attention on image tokens, by layer."""
    gazed: tuple[float, ...] | None
    """Of that, the share on what lies under the boxes; None where tokens are no grid."""
    covered: float | None
    """Share of the picture that lies under the boxes: what `gazed` would be by chance."""


class _Asked(NamedTuple):
    """A second thought and the three chains before it."""

    prompt: Segment
    chains: Mapping[Form, str]
    rethink: str
    boxes: tuple[Box, ...]
    image: ImageRef


def run(recipe: Recipe) -> dict[str, Any]:
    """Ask the recipe's model the items of `eval`, measure where it looks, and write
    `attention.json`; returns its content. Raises RecipeError where no answer has boxes and a second
    thought.
    """
    return asyncio.run(_run(recipe))


async def _run(recipe: Recipe) -> dict[str, Any]:
    policy, store = load_policy(recipe), ImageStore()
    setup = replace(setup_for(recipe, policy, store=store), failures=Failures())
    task, config = task_of(recipe), recipe.eval
    size = task.size(config.split)
    items = config.items if size is None else min(config.items, size)
    looks: list[dict[Form, Look]] = []
    with RunFolder(recipe.run or Path("runs/attention")) as folder:
        check_same_run(folder.recipe(), recipe, stage="eval")
        check_same_start(folder, recipe, stage="eval")
        folder.write_recipe(dump_recipe(recipe))
        folder.write_env(threads=recipe.threads)
        with progress("attention", total=items) as bar:
            for start in range(0, items, CHUNK):
                count = min(CHUNK, items - start)
                samples = task.load(config.split, store=store, start=start, count=count)
                if not start:
                    check_room(samples[0], setup)
                episodes = await rollout(
                    samples,
                    setup,
                    sampling=Sampling(config.temperature, recipe.rollout.max_tokens_per_turn),
                    seed=recipe.seed,
                    concurrency=recipe.rollout.concurrency,
                )
                for episode in episodes:
                    asked = _asked(episode, setup)
                    if asked is not None:
                        looks.append(_looks(asked, policy, store))
                    bar.advance(f"with boxes {len(looks)}")
                store.forget(i for s in samples for i in s.images)
        if not looks:
            raise RecipeError(
                f"None of {items} answers has boxes in <think> and a <rethink> after it, so there "
                "is nothing to compare: train the model in the grounded dialect first."
            )
        figures = _figures(looks, bootstrap=config.bootstrap, seed=recipe.seed)
        found = {"split": config.split, "items": items, "compared": len(looks), **figures}
        folder.write_json("attention.json", found)
    return found


def forms_of(chain: str, notation: Notation, renderer: SegmentRenderer) -> dict[Form, str] | None:
    """The chain as it is, with dots for its boxes, and without them; None where it has none."""
    written = notation.find(chain)
    if not any(box.values is not None for box in written):
        return None
    return {
        "boxes": chain,
        "dots": notation.dotted(chain, lambda said: len(renderer.begun(said).ids)),
        "stripped": notation.rewritten(chain, [None] * len(written)),
    }


def _asked(episode: Episode, setup: Setup) -> _Asked | None:
    """What to measure of an episode; None where its first turn has no boxes or no second
    thought.
    """
    found = chain_and_rethink(episode)
    if found is None or setup.boxes_as is None or setup.renderer is None or not episode.segments:
        return None
    chain, rethink = found
    forms = forms_of(chain, setup.boxes_as, setup.renderer)
    if forms is None or not rethink.strip():
        return None
    image = episode.sample.images[0]
    boxes = tuple(box.box for box in episode.turns[0].named if box.image == image)
    return _Asked(episode.segments[0], forms, rethink, boxes, image)


def _looks(asked: _Asked, policy: Policy, store: ImageStore) -> dict[Form, Look]:
    features = image_features(policy, asked.prompt.images, store=store)
    part = _under_tokens(asked, policy.renderer)
    found: dict[Form, Look] = {}
    for form, chain in asked.chains.items():
        seen = look(policy, asked.prompt, chain, asked.rethink, features)  # (layers, pads)
        on_image = seen.sum(axis=1)
        gazed = None if part is None else tuple((seen @ part / on_image).tolist())
        covered = None if part is None else float(part.mean())
        found[form] = Look(tuple(on_image.tolist()), gazed, covered)
    return found


def look(
    policy: Policy,
    prompt: Segment,
    chain: str,
    rethink: str,
    features: Mapping[str, torch.Tensor],
) -> np.ndarray:
    """Attention (layers, image tokens) of the tokens that `rethink` is written from, mean over
    heads and tokens. Of a token's attention, what is not on image tokens is on text.
    """
    renderer, device = policy.renderer, device_of(policy)
    written = Segment("demonstrated", renderer.begun(rethink).ids)
    tree = Tree((prompt,), ((renderer.begun(chain), written),))
    packed = batch([flatten(tree, renderer)]).to(device)
    # eager attention adds its mask to the scores
    sees = torch.zeros_like(packed.sees, dtype=torch.float32)
    sees.masked_fill_(~packed.sees, torch.finfo(torch.float32).min)
    with torch.no_grad(), _watched(policy, packed.source, packed.is_pad[0]) as layers:
        hidden_states(policy.model, replace(packed, sees=sees), features)
    found: np.ndarray = torch.stack(layers).double().cpu().numpy()
    return found


@contextmanager
def _watched(
    policy: Policy, queries: torch.Tensor, pads: torch.Tensor
) -> Iterator[list[torch.Tensor]]:
    """Collects, layer by layer, the attention (pads,) of some queries: the mean over them and all
    heads. Weights are thrown away as soon as they are read.
    """
    found: list[torch.Tensor] = []

    def read(_module: object, _given: object, out: tuple[torch.Tensor, torch.Tensor]) -> None:
        weights = out[1][0]  # (heads, T, T)
        found.append(weights[:, queries][:, :, pads].mean(dim=(0, 1)))

    language = policy.model.model.language_model
    before = language.config._attn_implementation
    policy.model.set_attn_implementation("eager")
    hooks = [layer.self_attn.register_forward_hook(read) for layer in language.layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        policy.model.set_attn_implementation(before)


def _under_tokens(asked: _Asked, renderer: Renderer) -> np.ndarray | None:
    """How much of each image token (tokens,) lies under the boxes; None where tokens are no grid of
    one picture.
    """
    if renderer.tower != "grids" or [i.key for i in asked.prompt.images] != [asked.image.key]:
        return None
    _, rows, columns = renderer.grid(asked.image)
    merged = rows * columns // renderer.image_tokens(asked.image)  # patches in one token
    side = round(merged**0.5)
    return under(asked.boxes, asked.image, rows // side, columns // side)


def under(boxes: Sequence[Box], image: ImageRef, rows: int, columns: int) -> np.ndarray:
    """Share (rows * columns,) of each cell of a grid over the picture that lies under any box, row
    by row, to 1/64.
    """
    x = (np.arange(columns * FINE) + 0.5) / (columns * FINE) * image.width
    y = (np.arange(rows * FINE) + 0.5) / (rows * FINE) * image.height
    inside = np.zeros((len(y), len(x)), dtype=bool)
    for box in boxes:
        across = (x >= box.x0) & (x < box.x1)
        inside |= ((y >= box.y0) & (y < box.y1))[:, None] & across
    found: np.ndarray = inside.reshape(rows, FINE, columns, FINE).mean(axis=(1, 3)).ravel()
    return found


# --- figures --------------------------------------------------------------------------------------


def _figures(looks: Sequence[dict[Form, Look]], *, bootstrap: int, seed: int) -> dict[str, Any]:
    """Means with 95% intervals over answers: of each form, by layer and over all layers, and paired
    differences.
    """

    def interval(values: np.ndarray) -> Interval:
        return mean_interval(values.tolist(), resamples=bootstrap, seed=seed)

    image = {form: np.array([of[form].image for of in looks]) for form in FORMS}  # (n, layers)
    told: dict[str, Any] = {
        "image": {
            form: {
                "all": interval(values.mean(axis=1)),
                "layers": [interval(layer) for layer in values.T],
            }
            for form, values in image.items()
        },
        "image_differences": {
            f"boxes - {form}": {
                "all": interval((image["boxes"] - image[form]).mean(axis=1)),
                "layers": [interval(layer) for layer in (image["boxes"] - image[form]).T],
            }
            for form in ("dots", "stripped")
        },
    }
    on_grid = [of for of in looks if of["boxes"].gazed is not None]
    if on_grid:
        told["gazed"] = {
            form: interval(np.array([np.mean(of[form].gazed or ()) for of in on_grid]))
            for form in FORMS
        }
        covered = np.array([of["boxes"].covered for of in on_grid], dtype=float)
        told["gazed_by_chance"] = interval(covered)
    return told


def format_attention(found: Mapping[str, Any]) -> Table:
    """The content of `attention.json` as a table, in per cent of all attention."""
    title = f"attention to the picture in <rethink>, {found['compared']} answers, 95% intervals"
    table = Table(title=title, title_justify="left")
    for column in ("", *FORMS, *found["image_differences"]):
        table.add_column(column, justify="left" if not column else "right")
    columns = [*found["image"].values(), *found["image_differences"].values()]
    layers = range(len(columns[0]["layers"]))
    for layer in layers:
        table.add_row(f"layer {layer}", *(_per_cent(c["layers"][layer]) for c in columns))
    table.add_row("all layers", *(_per_cent(c["all"]) for c in columns))
    if "gazed" in found:
        gazed = (_per_cent(found["gazed"][form]) for form in FORMS)
        table.add_row("of that under the boxes", *gazed)
        table.add_row("... by chance", _per_cent(found["gazed_by_chance"]))
    return table


def _per_cent(interval: Sequence[float | None]) -> str:
    estimate, low, high = (None if v is None else 100 * v for v in interval)
    return f"{estimate:.1f}" + ("" if low is None else f" [{low:.1f}, {high:.1f}]")
