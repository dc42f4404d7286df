"""Pretraining of the tiny base model: it learns to see, to point and to read, and nothing of tools.

Invariant: step k sees the same lessons whatever came before (a killed run goes on with the same
data), all drawn from charts of the `pretrain` split and each seen once. The loss is that of SFT on
the same token road.

Left out on purpose: several processes that learn. One process draws, one learns; the model is
small.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from saccade.assemble import made_by, model_folder, prepare
from saccade.config import PretrainConfig, Recipe
from saccade.geometry import Frame
from saccade.losses import clip_gradients
from saccade.models.checkpoint import load_state
from saccade.models.chosen import chosen_logprobs
from saccade.models.forward import encode_images, load_model, predicting_states
from saccade.models.tiny import (
    SCENE_PIECES,
    SETTINGS,
    build_model,
    build_tokenizer,
    grown,
    number_ids,
    open_to_hue,
    save,
    with_pieces,
)
from saccade.models.vision import with_linear_patches
from saccade.progress import progress
from saccade.recipe_files import check_same_run, dump_recipe
from saccade.renderers.qwen2vl import Qwen2VLRenderer, Qwen2VLSettings
from saccade.run_folder import RunFolder
from saccade.tokens import Flat, Pack, Tree, flatten, pack
from saccade.types import ImageRef, ImageShown, Message, Part, Segment, Text
from saccade.worlds import shapes
from saccade.worlds.charts import item
from saccade.worlds.lessons import TOPICS, Lesson, lessons
from saccade.worlds.shape_lessons import one_shot, shape_lessons

__all__ = [
    "LessonData",
    "Packed",
    "answer_weights",
    "learning_rate_factor",
    "lesson_tree",
    "optimizers",
    "run",
]

PATCH_RATE = 0.03
"""Learning rate of the patch embedding over that of the other parameters under AdamW."""


SPARSE_FIRST, FIRST, SPARSE = 0.5, 10_000, 0.15
"""Share of scenes with few, large things, among the first pictures and later: colours and forms are
learned on these.
"""
EXAMPLES = 0.08
"""Share of scenes whose question stands behind a worked example of another scene."""


ELSEWHERE = 10_000_000
"""Where in the split those other scenes begin."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One chart's lessons, ready for the model."""

    flat: Flat
    topics: tuple[tuple[int, ...], ...]
    """Topic of each turn of each branch, as an index into `TOPICS`."""
    patches: list[np.ndarray]
    grids: list[tuple[int, int, int]]


def lesson_tree(index: int, renderer: Qwen2VLRenderer, *, seed: int, scenes: float = 0.0) -> Packed:
    """Lessons on picture `index`: the picture as the trunk, each lesson as a branch. A share
    `scenes` of the pictures are scenes of shapes, the others charts.
    """
    image, taught = _taught(index, renderer, seed=seed, scenes=scenes)
    picture = ImageRef(f"picture-{index}", *image.size)
    shown = [(picture, image)]

    def parts_of(asked: Sequence[str | Image.Image]) -> tuple[Part, ...]:
        parts: list[Part] = []
        for part in asked:
            if isinstance(part, str):
                parts.append(Text(part))
            else:
                view = ImageRef(f"picture-{index}-view-{len(shown)}", *part.size)
                shown.append((view, part))
                parts.append(ImageShown(view, ""))
        return tuple(parts)

    branches: list[tuple[Segment, ...]] = []
    for lesson in taught:
        opening, *later = lesson
        branch = [renderer.encode_user_rest(parts_of(opening.asked))]
        branch.append(renderer.demonstrated(opening.answer))
        for exchange in later:
            branch.append(renderer.observation(Message("user", parts_of(exchange.asked))))
            branch.append(renderer.demonstrated(exchange.answer))
        branches.append(tuple(branch))
    tree = Tree((renderer.encode_user_image(picture),), tuple(branches))
    return Packed(
        flatten(tree, renderer),
        tuple(tuple(TOPICS.index(e.topic) for e in lesson) for lesson in taught),
        [renderer.patches(ref, image) for ref, image in shown],
        [renderer.grid(ref) for ref, _ in shown],
    )


def _taught(
    index: int, renderer: Qwen2VLRenderer, *, seed: int, scenes: float
) -> tuple[Image.Image, list[Lesson]]:
    """The picture and what is taught about it."""
    rng = np.random.default_rng([seed, index, 7])
    if scenes and np.random.default_rng([seed, index, 11]).random() < scenes:
        scene = (
            shapes.sparse_item("pretrain", index)
            if rng.random() < (SPARSE_FIRST if index < FIRST else SPARSE)
            else shapes.item("vsr" if index % 2 else "tally", "pretrain", index)
        )
        image = scene.scene.image
        example = ""
        if rng.random() < EXAMPLES:
            other = shapes.item(
                "vsr" if rng.random() < 0.5 else "tally", "pretrain", ELSEWHERE + index
            )
            example = one_shot(other, _frame_of(other.scene.image, renderer))
        frame = _frame_of(image, renderer)
        return image, shape_lessons(scene, rng, frame=frame, example=example)
    chart = item("pretrain", index, max_pixels=renderer.settings.max_pixels)
    image = chart.drawing.image
    return image, lessons(chart, rng, frame=_frame_of(image, renderer))


def _frame_of(image: Image.Image, renderer: Qwen2VLRenderer) -> Frame:
    return renderer.frame(ImageRef("picture", *image.size))


class LessonData(Dataset[Packed]):
    """Pictures `first` to `last` of the pretraining stream."""

    def __init__(
        self, renderer: Qwen2VLRenderer, *, seed: int, first: int, last: int, scenes: float = 0.0
    ) -> None:
        self.renderer, self.seed, self.first, self.last = renderer, seed, first, last
        self.scenes = scenes

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, k: int) -> Packed:
        return lesson_tree(self.first + k, self.renderer, seed=self.seed, scenes=self.scenes)


def optimizers(model: nn.Module, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and biases.

    The patch embedding learns slowly: its 1,176 inputs are nearly equal in a white patch, so that
    one step of Adam at the common rate would turn its output over.
    """
    matrices, patches, rest = [], [], []
    for name, p in model.named_parameters():
        if "patch_embed" in name:
            patches.append(p)
        elif p.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name:
            matrices.append(p)
        else:
            rest.append(p)
    groups = [{"params": rest, "scale": 1.0}, {"params": patches, "scale": PATCH_RATE}]
    return [
        torch.optim.Muon(
            matrices, lr=config.muon_learning_rate, momentum=0.95, weight_decay=0.0, ns_steps=4
        ),
        torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, constant, linear decay to nothing over the last `decay_steps`."""
    up = (step + 1) / max(1, config.warmup_steps)
    down = (config.steps - step) / max(1, config.decay_steps)
    return max(0.0, min(1.0, up, down))


def run(recipe: Recipe) -> Path:
    """Train the base of a recipe, or go on with it, and return the folder of the finished model."""
    config = recipe.pretrain
    prepare(recipe)
    square = SETTINGS.factor**2
    settings = replace(
        SETTINGS,
        min_pixels=recipe.min_image_tokens * square,
        max_pixels=recipe.max_image_tokens * square,
    )
    renderer, model = _begun(recipe, settings)
    trained = optimizers(model, config)
    with RunFolder(recipe.run or Path("runs/pretrain")) as folder:
        check_same_run(folder.recipe(), recipe, stage="pretrain")
        folder.write_recipe(dump_recipe(recipe))
        folder.write_env(threads=recipe.threads)
        first, minutes = _resume(folder, model, trained)
        step = first
        numbers = torch.tensor(number_ids(renderer.tokenizer))
        began = time.monotonic()
        steps = iter(_stream(renderer, recipe, first=step))
        with progress("pretrain", total=config.steps, done=step) as bar:
            while step < config.steps and minutes + _since(began) < config.max_minutes:
                packs = next(steps)
                for optimizer, rate in zip(trained, _rates(config), strict=True):
                    for group in optimizer.param_groups:
                        scale = group.get("scale", 1.0)
                        group["lr"] = rate * scale * learning_rate_factor(step, config)
                row = _step(model, trained, packs, numbers)
                step += 1
                folder.append("metrics", {"stage": "pretrain", "step": step, **row})
                bar.advance(f"loss {row['loss']:.2f}")
                if step % config.checkpoint_every == 0:
                    _checkpoint(folder, step, model, trained, minutes + _since(began))
        if step > first and step % config.checkpoint_every:
            _checkpoint(folder, step, model, trained, minutes + _since(began))
        if step < config.steps:
            print(
                f"Training ended after step {step} of {config.steps}, at the "
                f"{config.max_minutes:g} minutes of pretrain.max_minutes, before its learning "
                "rates had fallen; raise it and start again to go on.",
                file=sys.stderr,
            )
        save(
            model,
            renderer,
            folder.path / "model",
            made_by=made_by(recipe, stage="pretrain", start=recipe.pretrain.start),
        )
    return folder.path / "model"


def _begun(recipe: Recipe, settings: Qwen2VLSettings) -> tuple[Qwen2VLRenderer, nn.Module]:
    """A new model, or one that goes on, with tokens for what it lacked; one that lacked them was
    never asked about hue either.
    """
    if recipe.pretrain.start is None:
        renderer = Qwen2VLRenderer(build_tokenizer(), settings)
        return renderer, with_linear_patches(build_model(renderer.tokenizer, seed=recipe.seed))
    folder = model_folder(recipe.pretrain.start)
    before = Tokenizer.from_file(str(folder / "tokenizer.json"))
    renderer = Qwen2VLRenderer(with_pieces(before, SCENE_PIECES), settings)
    model = load_model(folder)
    if renderer.tokenizer.get_vocab_size() > before.get_vocab_size():
        model = grown(model, before, renderer.tokenizer, seed=recipe.seed)
        open_to_hue(model)
    return renderer, model.train()


def _step(
    model: nn.Module,
    trained: list[torch.optim.Optimizer],
    packs: list[Packed],
    numbers: torch.Tensor,
) -> dict[str, float]:
    """One optimiser step on the weighted mean loss over all taught tokens."""
    packed = pack([p.flat for p in packs])
    features = encode_images(
        model, [x for p in packs for x in p.patches], [g for p in packs for g in p.grids]
    )
    shown = dict(zip((i.key for i in packed.images), features, strict=True))
    chosen = chosen_logprobs(
        predicting_states(model, packed, shown),
        model.lm_head.weight,
        packed.target,
        temperature=1.0,
        suppressed=None,
    )
    weights = answer_weights(packed)
    loss = -(chosen.logprobs * weights).sum() / weights.sum()
    loss.backward()
    norm = clip_gradients(model.parameters(), 1.0)
    for optimizer in trained:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    topics = torch.tensor(
        [
            packs[r].topics[b][t]
            for r, b, t in zip(
                packed.tree.tolist(), packed.branch.tolist(), packed.turn.tolist(), strict=True
            )
        ]
    )  # (N,)
    row = {"loss": loss.item(), "grad_norm": norm}
    return row | _right(topics, chosen.likeliest, packed.target, numbers)


def answer_weights(packed: Pack) -> torch.Tensor:
    """Weights (N,) of taught tokens: an answer counts with the square root of its length.

    With equal weights the long lists of boxes would leave a hundredth of the gradient to readings
    and sums.
    """
    answers = torch.stack([packed.tree, packed.branch, packed.turn])
    _, answer, lengths = answers.unique(dim=1, return_inverse=True, return_counts=True)
    return lengths[answer].float().rsqrt()


def _right(
    topics: torch.Tensor, guess: torch.Tensor, target: torch.Tensor, numbers: torch.Tensor
) -> dict[str, float]:
    """How well the model did on lessons that it never saw: share of right tokens by topic, the mean
    error of coordinates in units of the frame, the share of numbers read right.
    """
    right = guess == target
    row = {f"right_{t}": right[topics == k].float().mean().item() for k, t in enumerate(TOPICS)}
    value_of = torch.full((int(max(guess.max(), target.max(), numbers.max())) + 1,), -1)
    value_of[numbers] = torch.arange(len(numbers))
    is_box = (topics == TOPICS.index("pointing")) & (value_of[target] >= 0)
    error = (value_of[guess[is_box]] - value_of[target[is_box]]).abs().float()
    row["pointing_error"] = error.mean().item()
    is_read = (topics == TOPICS.index("reading")) & (value_of[target] >= 0)
    row["right_number"] = right[is_read].float().mean().item()
    return row


def _rates(config: PretrainConfig) -> tuple[float, float]:
    """Of Muon and of AdamW, before warm-up and decay."""
    return (config.muon_learning_rate, config.learning_rate)


def _since(began: float) -> float:
    return (time.monotonic() - began) / 60


def _stream(renderer: Qwen2VLRenderer, recipe: Recipe, *, first: int) -> Iterator[list[Packed]]:
    """Batches from step `first` on, drawn by a process beside this one."""
    loader: DataLoader[Packed] = DataLoader(
        _data(renderer, recipe, first=first),
        batch_size=recipe.pretrain.charts_per_step,
        num_workers=1,
        collate_fn=list,
        prefetch_factor=4,
    )
    return iter(loader)


def _data(renderer: Qwen2VLRenderer, recipe: Recipe, *, first: int) -> LessonData:
    """The pictures of the steps from `first` on."""
    config = recipe.pretrain
    size = config.charts_per_step
    return LessonData(
        renderer,
        seed=recipe.seed,
        first=config.first + first * size,
        last=config.first + config.steps * size,
        scenes=config.scenes,
    )


def _checkpoint(
    folder: RunFolder,
    step: int,
    model: nn.Module,
    trained: list[torch.optim.Optimizer],
    minutes: float,
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in trained],
        "minutes": minutes,
    }
    folder.save_checkpoint(step, lambda path: torch.save(state, path / "state.pt"))


def _resume(
    folder: RunFolder, model: nn.Module, trained: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Take up the last whole checkpoint, if there is one: its step and the minutes that went into
    it.
    """
    latest = folder.latest_checkpoint()
    if latest is None:
        folder.truncate("metrics", key="step", after=0)
        return 0, 0.0
    step, path = latest
    state = load_state(path)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(trained, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    folder.truncate("metrics", key="step", after=step)
    return step, float(state["minutes"])
