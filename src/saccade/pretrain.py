"""Pretraining of the tiny base model: it learns to see, to point and to read, and nothing of tools.

Invariant: step k sees the same lessons whatever came before (a killed run goes on with the same
data), all drawn from charts of the `pretrain` split and each seen once. The loss is that of SFT on
the same token road.

Left out on purpose: several processes that learn. One process draws, one learns; the model is
small.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from saccade.config import PretrainConfig, Recipe, check_same_run, dump_recipe, recipe_hash
from saccade.models.qwen2vl import encode_images, hidden_states, token_logits, with_linear_patches
from saccade.models.tiny import SETTINGS, build_model, build_tokenizer, number_ids, save
from saccade.progress import progress
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.store import RunFolder
from saccade.tokens import Flat, Tree, batch, flatten
from saccade.types import ImageRef, Segment
from saccade.worlds.charts import item
from saccade.worlds.lessons import TOPICS, Lesson, few_lessons, lessons

__all__ = ["LessonData", "Packed", "learning_rate_factor", "lesson_trees", "optimizers", "run"]

PATCH_RATE = 0.03
"""Learning rate of the patch embedding over that of the other parameters under AdamW."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One chart's lessons, ready for the model."""

    flat: Flat
    topics: tuple[int, ...]
    """Topic of each branch, as an index into `TOPICS`."""
    patches: list[np.ndarray]
    grids: list[tuple[int, int, int]]


def lesson_trees(
    index: int, renderer: Qwen2VLRenderer, *, seed: int, dense: bool = True
) -> list[Packed]:
    """Lessons on chart `index`: first those about the picture, as branches of one tree, then each
    reading of an enlarged view as a tree of its own. One view is also read beside the chart.
    """
    chart = item("pretrain", index, max_pixels=renderer.settings.max_pixels)
    rng = np.random.default_rng([seed, index, 7])
    picture = ImageRef(f"chart-{index}", *chart.drawing.image.size)
    taught = (lessons if dense else few_lessons)(chart, rng, frame=renderer.frame(picture))
    beside = next(k for k, lesson in enumerate(taught) if lesson.view is not None)
    shown = [(picture, chart.drawing.image)]
    whole = renderer.encode_user_image(picture)
    branches: list[tuple[Segment, ...]] = []
    topics: list[int] = []
    readings: list[Packed] = []
    for number, lesson in enumerate(taught):
        view = None
        if lesson.view is not None:
            view = ImageRef(f"chart-{index}-view-{number}", *lesson.view.size)
            if number != beside:
                readings.append(_reading_tree(view, lesson, renderer))
                continue
            shown.append((view, lesson.view))
        asked = renderer.encode_user_rest(lesson.question, view)
        branches.append((asked, renderer.demonstrated(lesson.answer)))
        topics.append(TOPICS.index(lesson.topic))
    return [_pack(Tree((whole,), tuple(branches)), topics, shown, renderer), *readings]


def _reading_tree(view: ImageRef, lesson: Lesson, renderer: Qwen2VLRenderer) -> Packed:
    assert lesson.view is not None
    asked = renderer.encode_user_rest(lesson.question)
    branch = (asked, renderer.demonstrated(lesson.answer))
    tree = Tree((renderer.encode_user_image(view),), (branch,))
    return _pack(tree, [TOPICS.index(lesson.topic)], [(view, lesson.view)], renderer)


def _pack(
    tree: Tree,
    topics: Sequence[int],
    shown: Sequence[tuple[ImageRef, Image.Image]],
    renderer: Qwen2VLRenderer,
) -> Packed:
    return Packed(
        flatten(tree, renderer),
        tuple(topics),
        [renderer.patches(ref, image) for ref, image in shown],
        [renderer.grid(ref) for ref, _ in shown],
    )


class LessonData(Dataset[list[Packed]]):
    """The pretraining stream by chart; a dense chart gives a dozen lessons, others give four."""

    def __init__(self, renderer: Qwen2VLRenderer, *, seed: int, dense: int, count: int) -> None:
        self.renderer, self.seed, self.dense, self.count = renderer, seed, dense, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> list[Packed]:
        return lesson_trees(index, self.renderer, seed=self.seed, dense=index < self.dense)


def charts_before(step: int, config: PretrainConfig) -> int:
    """How many charts the steps before this one saw: the first chart of the step."""
    dense = min(step, config.dense_steps)
    return dense * config.dense_charts_per_step + (step - dense) * config.charts_per_step


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
    torch.set_num_threads(recipe.threads)
    renderer = Qwen2VLRenderer(build_tokenizer(), SETTINGS)
    model = with_linear_patches(build_model(renderer.tokenizer, seed=recipe.seed))
    trained = optimizers(model, config)
    with RunFolder(recipe.run or Path("runs/pretrain")) as folder:
        check_same_run(folder.recipe(), recipe, stage="pretrain")
        folder.write_recipe(dump_recipe(recipe))
        folder.write_env(threads=recipe.threads)
        step, minutes = _resume(folder, model, trained)
        numbers = torch.tensor(number_ids(renderer.tokenizer))
        began = time.monotonic()
        steps = iter(_stream(renderer, recipe, first=step))
        with progress("pretrain", total=config.steps, done=step) as bar:
            while step < config.steps and minutes + _since(began) < config.max_minutes:
                packs = next(steps)
                for optimizer, rate in zip(trained, _rates(step, config), strict=True):
                    for group in optimizer.param_groups:
                        scale = group.get("scale", 1.0)
                        group["lr"] = rate * scale * learning_rate_factor(step, config)
                row = _step(model, trained, packs, numbers)
                step += 1
                folder.append("metrics", {"stage": "pretrain", "step": step, **row})
                bar.advance(f"loss {row['loss']:.2f}")
                if step % config.checkpoint_every == 0 or step == config.steps:
                    _checkpoint(folder, step, model, trained, minutes + _since(began))
        save(
            model,
            renderer,
            folder.path / "model",
            made_by={"recipe": recipe_hash(recipe), "seed": recipe.seed},
        )
    return folder.path / "model"


def _step(
    model: nn.Module,
    trained: list[torch.optim.Optimizer],
    packs: list[Packed],
    numbers: torch.Tensor,
) -> dict[str, float]:
    """One optimiser step on the mean loss over all taught tokens, long and short trees apart."""
    tokens = sum(int(p.flat.trained.sum()) for p in packs)
    total = 0.0
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    long, short = [p for p in packs if len(p.topics) > 1], [p for p in packs if len(p.topics) == 1]
    for part in filter(None, (long, short)):
        packed = batch([p.flat for p in part])
        features = encode_images(
            model, [x for p in part for x in p.patches], [g for p in part for g in p.grids]
        )
        logits = token_logits(model, packed, hidden_states(model, packed, features))  # (N, V)
        loss = F.cross_entropy(logits, packed.target, reduction="sum") / tokens
        loss.backward()
        total += loss.item()
        by_tree = pad_sequence([torch.tensor(p.topics) for p in part], batch_first=True)
        topics = by_tree[packed.row, packed.branch]  # (N,)
        seen.append((topics, logits.detach().argmax(-1), packed.target))
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in trained:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    topics, guess, target = (torch.cat(t) for t in zip(*seen, strict=True))
    row = {"loss": total, "grad_norm": norm.item()}
    return row | _right(topics, guess, target, numbers)


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


def _rates(step: int, config: PretrainConfig) -> tuple[float, float]:
    """Of Muon and of AdamW at a step, before warm-up and decay."""
    if config.late_after is not None and step >= config.late_after:
        return (config.late_muon_learning_rate, config.late_learning_rate)
    return (config.muon_learning_rate, config.learning_rate)


def _since(began: float) -> float:
    return (time.monotonic() - began) / 60


def _stream(renderer: Qwen2VLRenderer, recipe: Recipe, *, first: int) -> Iterator[list[Packed]]:
    """Batches from step `first` on, drawn by a process beside this one."""
    config = recipe.pretrain
    data = LessonData(
        renderer,
        seed=recipe.seed,
        dense=charts_before(config.dense_steps, config),
        count=charts_before(config.steps, config),
    )
    batches = [
        list(range(charts_before(step, config), charts_before(step + 1, config)))
        for step in range(first, config.steps)
    ]
    loader: DataLoader[list[Packed]] = DataLoader(
        data, batch_sampler=batches, num_workers=1, collate_fn=_joined, prefetch_factor=4
    )
    return iter(loader)


def _joined(charts: list[list[Packed]]) -> list[Packed]:
    return [pack for chart in charts for pack in chart]


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
    state = torch.load(path / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(trained, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    folder.truncate("metrics", key="step", after=step)
    return step, float(state["minutes"])
