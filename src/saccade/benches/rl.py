"""`saccade bench rl`: whole steps of RL, ours beside those of TRL, in one run.

Invariant: both sides start from one model folder, are told the same to the token, see the same
pictures, and write equally many tokens in two turns with one glance between them: all of that is
counted on both sides and checked, not assumed. Steps of both sides alternate, so that a busy
machine is busy for both. A step is rollouts, rewards, and the update; its pictures are new and were
made before.

Left out on purpose: whether anything is learned (the rate is 1e-6), and vLLM, which TRL can use on
a GPU.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from saccade import rl
from saccade.assemble import Policy, load_policy
from saccade.benches.play import (
    SIDE,
    VIEW_SIDE,
    Counts,
    Glances,
    counts_of,
    picture,
    recipe_for,
    setup_of,
    teach,
)
from saccade.benches.products import BareSeconds, Work, bare_seconds
from saccade.config import Recipe
from saccade.environment import environment
from saccade.errors import SaccadeError
from saccade.image_store import ImageStore
from saccade.progress import progress
from saccade.rollout import opening
from saccade.sft import trainable
from saccade.types import Episode

if TYPE_CHECKING:
    from saccade.benches.trl import TrlStep

__all__ = ["bench_rl"]

Against = Literal["trl", "none"]
STYLES = ("schema", "signature", "silent")
UNUSED = ("steps", "reward", "checkpoint_every", "eval_every", "eval_items", "warmup_steps")
"""Keys of a recipe's section `rl` that have no part in a step here."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of ours."""

    rollout_seconds: float
    seconds: float
    """Rollouts, rewards and update."""
    cpu_seconds: float
    counts: Counts
    pictures: int
    """Distinct ones."""


class _Ours:
    """Our side: the policy, and one step at a time."""

    def __init__(self, recipe: Recipe, task: Glances) -> None:
        self.recipe = recipe
        self.policy: Policy = load_policy(recipe)
        self.store = ImageStore()
        self.setup = setup_of(recipe, self.policy, task, store=self.store)
        self.steps: list[_Step] = []
        self.bare: list[BareSeconds] = []
        self._task = task
        self._optimizer = torch.optim.AdamW(
            trainable(self.policy.model, freeze_vision=recipe.rl.freeze_vision),
            lr=recipe.rl.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=recipe.rl.weight_decay,
        )

    def step(self) -> None:
        """One step, as `rl.run` takes it, and its bare products right behind it."""
        config = self.recipe.rl
        number = len(self.steps)
        began, worked = time.perf_counter(), time.process_time()
        rl.publish(self.setup.engine, self.policy, version=number, same_vision=config.freeze_vision)
        sampled = asyncio.run(rl.sample_step(self._task, self.setup, self.recipe, step=number))
        rolled = time.perf_counter()
        frozen = None
        if config.freeze_vision:
            shown = [i for e in sampled.episodes for i in e.images.values()]
            frozen = self.setup.engine.features(shown)
        rl.update(
            self.policy,
            None,
            sampled,
            self.store,
            self._optimizer,
            self.recipe,
            rate=config.learning_rate,
            frozen=frozen,
        )
        for episode in sampled.episodes:
            self.store.forget(episode.sample.images)
        ended, cpu = time.perf_counter(), time.process_time() - worked
        if sampled.agreeing or sampled.dropped:
            raise SaccadeError(
                f"{sampled.agreeing + sampled.dropped} groups had nothing to learn from, which "
                "would make our update too short; measure again with another seed."
            )
        pictures = {i.key for e in sampled.episodes for i in e.images.values()}
        counts = _same_counts(sampled.episodes)
        found = _Step(rolled - began, ended - began, cpu, counts, len(pictures))
        self.steps.append(found)
        self.bare.append(bare_seconds(self.policy.model, self._work(found, sampled.episodes[0])))

    def _work(self, step: _Step, episode: Episode) -> Work:
        renderer = self.policy.renderer
        _, rows, columns = renderer.grid(episode.sample.images[0])
        return Work(
            prompts=self.recipe.rl.prompts_per_step,
            group=self.recipe.rl.group_size,
            counts=step.counts,
            pictures=step.pictures,
            patches=rows * columns,
            is_vision_trained=not self.recipe.rl.freeze_vision,
        )


def _same_counts(episodes: Sequence[Episode]) -> Counts:
    different = {counts_of(e) for e in episodes}
    if len(different) > 1:
        raise SaccadeError(
            f"Episodes of one step have {len(different)} different lengths, "
            f"{' and '.join(str(tuple(c)) for c in sorted(different)[:2])}: the model left its "
            "form; measure again with another seed."
        )
    return different.pop()


def bench_rl(
    against: Against = "trl",
    *,
    steps: int = 5,
    warmup: int = 2,
    prompts: int = 16,
    group: int = 8,
    threads: int = 1,
    tool_style: Literal["schema", "signature", "silent"] = "schema",
    tools: Sequence[str] = (),
    image_tokens: int = 256,
    freeze_vision: bool = False,
    micro_batch: int = 8,
    seed: int = 0,
    model: Path | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Seconds of whole steps, rollouts a second and their ratio; every setting by name.

    `tool_style` says how the prompt describes tools, on both sides, and `tools` which ones beside
    the one that is called, and so how long it is;
    `image_tokens` is the budget of each picture on both sides.
    `micro_batch` is the number of episodes in one pass of TRL's update. `model` is a folder that
    `teach` made for the same style; without, one is made. Raises SaccadeError where a setting can't
    be, TRL is not installed, or the sides do not do the same work.
    """
    _check_settings(against, tool_style, episodes=prompts * group, micro_batch=micro_batch)
    play_with_trl = _trl() if against == "trl" else None
    console = Console(quiet=not show)
    total = warmup + steps
    with TemporaryDirectory() as folder:
        if model is None:
            model = Path(folder) / "model"
            teach(
                model,
                seed=seed,
                threads=threads,
                tool_style=tool_style,
                image_tokens=image_tokens,
                tools=tools,
            )
        recipe = recipe_for(
            model,
            prompts=prompts,
            group=group,
            threads=threads,
            tool_style=tool_style,
            freeze_vision=freeze_vision,
            image_tokens=image_tokens,
            tools=tools,
        )
        recipe = recipe.model_copy(update={"seed": seed})
        task = Glances(tuple(picture(n) for n in range(total * prompts)))
        ours = _Ours(recipe, task)
        theirs: list[TrlStep] = []
        settings: dict[str, Any] = {}
        with progress("steps", total=total) as bar:

            def step() -> None:
                ours.step()
                bar.advance()

            if play_with_trl is None:
                for _ in range(total):
                    step()
            else:
                samples = task.load("train", store=ours.store)
                theirs, settings = play_with_trl(
                    recipe,
                    [opening(s, ours.setup) for s in samples],
                    task.pictures,
                    steps=total,
                    micro_batch=micro_batch,
                    between=step,
                )
    if play_with_trl is not None:
        _check_same_work(ours.steps, theirs)
    found = _found(ours, theirs, warmup=warmup)
    found["configuration"] = _configuration(ours, settings, warmup=warmup)
    _print(found, console)
    return found


def _check_settings(against: str, tool_style: str, *, episodes: int, micro_batch: int) -> None:
    if against not in ("trl", "none"):
        raise SaccadeError(f"There is nothing to measure against named {against!r}: trl or none.")
    if tool_style not in STYLES:
        raise SaccadeError(f"No tool style {tool_style!r}. There are: {', '.join(STYLES)}.")
    if micro_batch < 1 or episodes % micro_batch:
        raise SaccadeError(
            f"micro_batch must divide the {episodes} episodes of a step, got {micro_batch}."
        )


def _trl() -> Callable[..., Any]:
    try:
        from saccade.benches.trl import play_with_trl
    except ImportError as error:
        raise SaccadeError(
            f"TRL can't be imported ({error}): pip install 'saccade[trl]', or say --against none."
        ) from None
    return play_with_trl


def _check_same_work(ours: Sequence[_Step], theirs: Sequence[TrlStep]) -> None:
    """Raises SaccadeError where a step of TRL had other tokens or pictures than ours."""
    for mine, other in zip(ours, theirs, strict=True):
        prompt, first, observation, second = mine.counts
        ours_told = (prompt, first + observation + second, first + second, 2)
        told = (
            other.prompt_tokens,
            other.completion_tokens,
            other.generated_tokens,
            other.pictures,
        )
        if ours_told != told:
            raise SaccadeError(
                "The sides did different work (tokens of the prompt, behind it, written; pictures):"
                f" ours {ours_told}, TRL {told}."
            )


def _found(ours: _Ours, theirs: Sequence[TrlStep], *, warmup: int) -> dict[str, Any]:
    config = ours.recipe.rl
    episodes = config.prompts_per_step * config.group_size
    measured, bare = ours.steps[warmup:], ours.bare[warmup:]
    counts = measured[0].counts
    seconds = median(s.seconds for s in measured)
    products, cpu = median(b.whole for b in bare), median(b.cpu for b in bare)
    found_cpu = median(s.cpu_seconds for s in measured)
    found: dict[str, Any] = {
        "episodes": episodes,
        "tokens": {
            **counts._asdict(),
            "generated": counts.first_turn + counts.second_turn,
            "episode": sum(counts),
        },
        "saccade": _side(measured, episodes),
        "trl": None,
        "ratio": None,
        "cpu_ratio": None,
        "bare": {
            "seconds": products,
            **{
                name: median(getattr(b, name) for b in bare)
                for name in ("pictures", "prefill", "decode", "update")
            },
            "cpu_seconds": cpu,
            "ratio": seconds / products,
            "cpu_ratio": found_cpu / cpu,
        },
    }
    if theirs:
        found["trl"] = _side(theirs[warmup:], episodes)
        mine, other = found["saccade"], found["trl"]
        found["ratio"] = mine["rollouts_per_s"] / other["rollouts_per_s"]
        found["cpu_ratio"] = other["cpu_seconds"] / mine["cpu_seconds"]
    return found


def _side(steps: Sequence[_Step] | Sequence[TrlStep], episodes: int) -> dict[str, Any]:
    seconds = median(s.seconds for s in steps)
    found: dict[str, Any] = {
        "seconds": seconds,
        "rollout_seconds": median(s.rollout_seconds for s in steps),
        "update_seconds": median(s.seconds - s.rollout_seconds for s in steps),
        "cpu_seconds": median(s.cpu_seconds for s in steps),
        "rollouts_per_s": episodes / seconds,
        "every_step": [s.seconds for s in steps],
    }
    pictures = [getattr(s, "picture_seconds", None) for s in steps]
    if None not in pictures:
        found["picture_seconds"] = median(pictures)
    return found


def _configuration(ours: _Ours, settings: dict[str, Any], *, warmup: int) -> dict[str, Any]:
    recipe, model = ours.recipe, ours.policy.model
    sections = {"rollout", "rl", "dialect", "tool_style", "tools"}
    sections |= {"min_image_tokens", "max_image_tokens"}
    told = recipe.model_dump(mode="json", include=sections)
    told["rl"] = {k: v for k, v in told["rl"].items() if k not in UNUSED}
    text = model.config.get_text_config()
    vision = model.config.vision_config
    machine = environment()
    packages = ("torch", "transformers", *(("trl", "accelerate") if settings else ()))
    return {
        "common": {
            "cpu": machine["cpu"],
            "cores": machine["cores"],
            "device": str(next(model.parameters()).device),
            "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "language": f"{text.num_hidden_layers} layers of {text.hidden_size}, "
            f"{text.num_attention_heads} heads, vocabulary {text.vocab_size}",
            "vision": f"{vision.depth} layers of {vision.embed_dim}",
            "picture_px": SIDE,
            "glance_px": VIEW_SIDE,
            "reward": "the number that was answered",
            "warmup_steps": warmup,
            "measured_steps": len(ours.steps) - warmup,
            **{name: metadata.version(name) for name in packages},
        },
        "saccade": {
            **told,
            "seed": recipe.seed,
            "optimizer": {"name": "AdamW", "betas": [0.9, 0.98]},
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        },
        "trl": settings or None,
    }


def _print(found: dict[str, Any], console: Console) -> None:
    for side, settings in found["configuration"].items():
        if settings:
            console.print(f"[bold]{side}[/bold]: " + _in_words(settings))
    tokens = found["tokens"]
    console.print(
        f"[bold]each of {found['episodes']} episodes[/bold]: prompt {tokens['prompt']}, written "
        f"{tokens['first_turn']}, tool {tokens['observation']}, written {tokens['second_turn']}"
    )
    table = Table(title="one step of RL, median seconds")
    for name in ("", "rollouts", "update", "step", "processor", "rollouts/s"):
        table.add_column(name, justify="left" if not name else "right")
    for name in ("saccade", "trl"):
        if side := found[name]:
            table.add_row(
                name,
                f"{side['rollout_seconds']:.3f}",
                f"{side['update_seconds']:.3f}",
                f"{side['seconds']:.3f}",
                f"{side['cpu_seconds']:.3f}",
                f"{side['rollouts_per_s']:.1f}",
            )
    bare = found["bare"]
    rollout = bare["pictures"] + bare["prefill"] + bare["decode"]
    table.add_row(
        "bare products",
        f"{rollout:.3f}",
        f"{bare['update']:.3f}",
        f"{bare['seconds']:.3f}",
        f"{bare['cpu_seconds']:.3f}",
        f"{found['episodes'] / bare['seconds']:.1f}",
    )
    console.print(table)
    console.print(
        f"saccade takes {bare['ratio']:.2f} times its bare products "
        f"({bare['cpu_ratio']:.2f} in processor time)"
    )
    if found["trl"]:
        console.print(
            f"saccade makes {found['ratio']:.2f} times the rollouts a second of TRL "
            f"({found['cpu_ratio']:.2f} in processor time); "
            f"TRL's pictures took {found['trl']['picture_seconds']:.3f} s of its step"
        )


def _in_words(settings: dict[str, Any], *, under: str = "") -> str:
    words = []
    for name, value in settings.items():
        if isinstance(value, dict):
            words.append(_in_words(value, under=f"{under}{name}."))
        else:
            words.append(f"{under}{name} {value}")
    return ", ".join(words)
