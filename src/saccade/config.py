"""Recipes: everything that a run depends on, in one checked file.

Invariant: a `Recipe` that exists can be run as far as its own values say; unknown keys, values out
of range and keys that stand twice are refused with a sentence for each. Flags and YAML share the
names (`rl.group_size=8`). Paths are relative to the working directory.

Left out on purpose: Python paths in YAML, environment variables, and checks of a task's own
options, which the task makes itself.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from saccade.errors import RecipeError

__all__ = [
    "ApiConfig",
    "EvalConfig",
    "PretrainConfig",
    "Recipe",
    "RlConfig",
    "RolloutConfig",
    "SftConfig",
    "Stage",
    "TaskConfig",
    "check_same_run",
    "dump_recipe",
    "load_recipe",
    "recipe_hash",
]

Positive = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: object, info: ValidationInfo) -> object:
        # pydantic would take `steps: yes` for 1
        if (
            isinstance(value, bool)
            and cls.model_fields[info.field_name or ""].annotation is not bool
        ):
            raise ValueError("must not be true or false")
        return value


class TaskConfig(_Section):
    """What is asked."""

    name: str = "charts"
    """Name of the task: `charts`, `files`, or one of your own."""
    path: Path | None = None
    """JSONL file of the task `files`."""
    options: dict[str, JsonValue] = {}
    """Arguments of the task by name; the task refuses those that it does not know."""

    @model_validator(mode="after")
    def _files_need_a_path(self) -> TaskConfig:
        if self.name == "files" and self.path is None:
            raise ValueError(
                "task.path is not set, but task files reads one: set task.path=FILE.jsonl"
            )
        return self


class RolloutConfig(_Section):
    """How episodes are made, in synthesis, RL and evaluation alike."""

    max_turns: Positive = 4
    """Turns of the model in one episode."""
    max_tokens_per_turn: Positive = 128
    """Tokens that the model may write in one turn."""
    max_context_tokens: Positive = 2048
    """Tokens of a whole episode, prompt and pictures included; engines without ids (`api`) can't
    count them and are bound by `max_turns` alone.
    """
    temperature: Weight = 1.0
    """Of sampling in synthesis and RL; 0 takes the most likely token."""
    concurrency: Positive = 128
    """Episodes under way at the same time."""
    tool_deadline_s: Rate = 10.0
    """Seconds that one tool call may take."""
    observation: Literal["image", "text", "none"] = "image"
    """Shown of a tool's picture: the picture, a sentence in its place, or no tools at all."""

    @model_validator(mode="after")
    def _a_turn_fits_the_context(self) -> RolloutConfig:
        if self.max_tokens_per_turn >= self.max_context_tokens:
            raise ValueError(
                "rollout.max_tokens_per_turn must be less than rollout.max_context_tokens "
                f"({self.max_context_tokens}), got {self.max_tokens_per_turn}"
            )
        return self


class SftConfig(_Section):
    """Cold start on demonstrations."""

    demonstrations: Path = Path("demonstrations.jsonl")
    """JSONL file of what a model should have said: `sample`, `turns` and `quality` in each line."""
    epochs: Positive = 10
    """Passes over the demonstrations."""
    batch_size: Positive = 16
    """Episodes for each optimiser step."""
    learning_rate: Rate = 3e-4
    """Of AdamW, after the warm-up."""
    warmup_steps: Whole = 20
    """Optimiser steps over which the learning rate rises from 0."""
    weight_decay: Weight = 0.0
    """Of AdamW."""
    max_grad_norm: Rate = 1.0
    """Gradients are scaled down to this norm."""
    freeze_vision: bool = False
    """Leave the vision encoder as it is."""
    checkpoint_every: Positive = 100
    """Optimiser steps between checkpoints."""


class RlConfig(_Section):
    """V-ToolRL: group-relative policy optimisation on multi-turn episodes."""

    steps: Positive = 200
    """Rollout batches."""
    prompts_per_step: Positive = 16
    """Samples for each rollout batch."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Episodes for each sample, compared with each other."""
    learning_rate: Rate = 3e-5
    """Of AdamW, after the warm-up."""
    warmup_steps: Whole = 5
    """Rollout batches over which the learning rate rises from 0."""
    weight_decay: Weight = 0.0
    """Of AdamW."""
    max_grad_norm: Rate = 1.0
    """Gradients are scaled down to this norm."""
    updates_per_batch: Positive = 1
    """Optimiser steps for each rollout batch; from the second on, ratios differ from 1."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "grpo"
    """How ratios are formed and tokens are averaged; the other settings keep their values."""
    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Ratios below 1 - clip_low are clipped (GSPO as published: 3e-4)."""
    clip_high: Weight = 0.2
    """Ratios above 1 + clip_high are clipped (DAPO as published: 0.28, GSPO: 4e-4)."""
    kl_beta: Weight = 0.04
    """Weight of the KL divergence from the reference (Dr. GRPO and DAPO as published: 0)."""
    reference: str | None = None
    """Model that the KL divergence is measured from; null: the one that RL starts from."""
    scale_advantages: bool = True
    """Divide advantages by the standard deviation of their group (Dr. GRPO as published: false)."""
    dynamic_sampling: bool = False
    """Draw samples until prompts_per_step groups have rewards that differ (DAPO: true)."""
    credit: Literal["episode", "turn"] = "episode"
    """One advantage for a whole episode, or one for each turn from what its tools returned."""
    reward: str = "answer_published"
    """Name of the reward; the published one gives +1 or -1 at the end."""
    freeze_vision: bool = False
    """Leave the vision encoder as it is."""
    checkpoint_every: Positive = 20
    """Rollout batches between checkpoints."""
    eval_every: Whole = 20
    """Rollout batches between evaluations; 0: none."""
    eval_items: Positive = 100
    """Validation samples for each of these evaluations."""


class PretrainConfig(_Section):
    """Base training of a tiny model on captions, boxes and plain questions; nothing of tools."""

    steps: Positive = 6000
    """Optimiser steps."""
    charts_per_step: Positive = 8
    """Charts for each optimiser step."""
    learning_rate: Rate = 1e-3
    """Of AdamW, for embeddings, norms and biases, after the warm-up."""
    muon_learning_rate: Rate = 0.02
    """Of Muon, for weight matrices, after the warm-up."""
    warmup_steps: Whole = 100
    """Optimiser steps over which the learning rates rise from 0."""
    decay_steps: Whole = 1000
    """Last optimiser steps, over which the learning rates fall to 0."""
    checkpoint_every: Positive = 250
    """Optimiser steps between checkpoints."""
    max_minutes: Rate = 120.0
    """Training ends after this time, over all resumed parts, even where steps are left."""

    @model_validator(mode="after")
    def _schedule_fits(self) -> PretrainConfig:
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                "pretrain.warmup_steps + pretrain.decay_steps must be at most pretrain.steps "
                f"({self.steps}), got {self.warmup_steps} + {self.decay_steps}"
            )
        return self


class ApiConfig(_Section):
    """A model behind an OpenAI-compatible endpoint; the key is read from OPENAI_API_KEY."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Address of the endpoint, up to and including its version."""
    frame: Literal["pixels", "thousand", "unit", "percent"] = "thousand"
    """In which coordinates the model writes boxes."""
    images: Literal["auto", "native", "user_followup"] = "user_followup"
    """Where pictures of tools stand: in the tool's message, or in a message of the user."""
    max_image_pixels: Positive | None = None
    """Budget for each picture; null: as it is."""
    timeout_s: Rate = 120.0
    """Without a byte of an answer."""
    retries: Whole = 4
    """After errors that may pass."""


class EvalConfig(_Section):
    """How a model is measured."""

    split: str = "test"
    """Split of the task."""
    items: Positive = 500
    """Samples, from the start of the split."""
    temperature: Weight = 0.0
    """Of sampling; 0 takes the most likely token."""
    bootstrap: Positive = 10_000
    """Resamples for the 95% intervals."""


class Recipe(_Section):
    """One run, in full."""

    run: Path | None = None
    """Run folder; null: chosen by the command."""
    seed: Whole = 0
    """Of all random draws."""
    threads: Positive = 2
    """CPU threads of torch."""
    deterministic: bool = False
    """Bit-identical weights on the same machine, also after a resume; somewhat slower."""
    model: str = "saccade-tiny-base"
    """Folder of a model, or the name of a built-in one."""
    dialect: Literal["hermes", "openthinkimg", "plain", "pointing"] = "hermes"
    """Text form of tool calls."""
    tool_style: Literal["schema", "signature", "silent"] = "schema"
    """How the prompt describes tools: JSON schemas, one short line for each, or not at all, for a
    model that knows them from its demonstrations."""
    tools: tuple[str, ...] = ("zoom", "crop")
    """Tools that the model may call, by name; the answer action is always there."""
    min_image_tokens: Positive = 4
    """Smaller pictures are enlarged to this many tokens."""
    max_image_tokens: Positive = 64
    """Budget for each picture: the question's and those that tools return."""
    task: TaskConfig = TaskConfig()
    rollout: RolloutConfig = RolloutConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sft: SftConfig = SftConfig()
    rl: RlConfig = RlConfig()
    eval: EvalConfig = EvalConfig()
    api: ApiConfig | None = None
    """Where `model` is asked instead of being loaded: for `eval`, `rollout` and `ask`."""

    @field_validator("tools")
    @classmethod
    def _each_tool_once(cls, tools: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({t for t in tools if tools.count(t) > 1}):
            raise ValueError(f"must name each tool once, but {', '.join(twice)} stands twice")
        return tools

    @model_validator(mode="after")
    def _pictures_fit(self) -> Recipe:
        if self.min_image_tokens > self.max_image_tokens:
            raise ValueError(
                f"min_image_tokens must be at most max_image_tokens ({self.max_image_tokens}), "
                f"got {self.min_image_tokens}"
            )
        need = self.max_image_tokens + self.rollout.max_tokens_per_turn
        if need > self.rollout.max_context_tokens:
            raise ValueError(
                f"rollout.max_context_tokens must hold one picture and one turn ({need} tokens), "
                f"got {self.rollout.max_context_tokens}: raise it or lower max_image_tokens"
            )
        return self


# --- reading and writing --------------------------------------------------------------------------


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file (None: all defaults) with `rl.group_size=8` overrides on top.

    Values of overrides are read as YAML; the last one wins. Raises RecipeError with one sentence
    for each thing that is wrong.
    """
    data = {} if path is None else _read(path)
    for override in overrides:
        _override(data, override)
    # a section whose keys are all commented out is an empty one
    sections = [name for name in _SECTIONS if name in data and data[name] is None]
    for name in sections:
        del data[name]
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        sentences = dict.fromkeys(_sentence(detail) for detail in error.errors())
        raise RecipeError("\n".join(sentences)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included; `load_recipe` reads back an equal one."""
    data = recipe.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


Stage = Literal["pretrain", "sft", "rl", "eval"]
_MAY_CHANGE: dict[Stage, frozenset[str]] = {
    "pretrain": frozenset({"steps", "decay_steps", "checkpoint_every", "max_minutes"}),
    "sft": frozenset({"epochs", "checkpoint_every"}),
    "rl": frozenset({"steps", "checkpoint_every", "eval_every", "eval_items"}),
    "eval": frozenset({"items", "bootstrap"}),
}
"""Keys of a stage's own section with which a run in the same folder may go on."""


def recipe_hash(recipe: Recipe, *, stage: Stage) -> str:
    """sha256 of what a stage depends on, as canonical JSON: its own section and all common keys,
    but neither the place of the run nor the number of threads.
    """
    data = recipe.model_dump(mode="json", exclude=_not_of(stage))
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _not_of(stage: Stage) -> set[str]:
    """Keys of a recipe that say nothing about a stage."""
    return {"run", "threads", *_MAY_CHANGE} - {stage}


def check_same_run(stored: str | None, recipe: Recipe, *, stage: Stage) -> None:
    """Raises RecipeError where a run folder holds another recipe's run: its rows and weights would
    be taken for this one's. Sections of other stages do not count, nor does `run`; `threads` count
    under `deterministic`, since sums over more threads are added in another order.
    """
    if stored is None:
        return
    before, now = _stored(stored, recipe), recipe.model_dump(mode="json")
    ordered = {"threads"} if recipe.deterministic else set()
    for key in sorted(now.keys() - _not_of(stage) | ordered):
        old, new = before.get(key), now[key]
        if key == stage and isinstance(old, dict | None):
            kept = sorted(new.keys() - _MAY_CHANGE[stage])
            old, new = {k: (old or {}).get(k) for k in kept}, {k: new[k] for k in kept}
            changed = next((k for k in kept if old[k] != new[k]), None)
            if changed is not None:
                key, old, new = f"{stage}.{changed}", old[changed], new[changed]
        if old != new:
            raise RecipeError(
                f"The run folder {str(recipe.run)!r} holds a run with {key}: {_short(old)}, now it "
                f"is {_short(new)}; choose another folder with --run, or delete that one."
            )


def _stored(text: str, recipe: Recipe) -> dict[str, Any]:
    """The recipe in a run folder, which someone may have damaged."""
    try:
        data = yaml.load(text, _Loader)
        problem = f"it is {_short(data)}"
    except (yaml.YAMLError, ValueError) as error:
        data = None
        problem = _problem(error) if isinstance(error, yaml.YAMLError) else str(error)
    except RecursionError:
        data, problem = None, "it is nested too deeply"
    if not isinstance(data, dict):
        raise RecipeError(
            f"recipe.yaml in the run folder {str(recipe.run)!r} is no recipe ({problem}); choose "
            "another folder with --run, or delete that one."
        )
    return data


class _Loader(yaml.SafeLoader):
    """YAML without dates; a key that stands twice is an error, where YAML lets the last one win."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} stands twice, again in line {line}"
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML whose odd strings survive: unquoted, PyYAML loses line breaks such as U+0085."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe {path}; give the path of a YAML file.") from None
    except OSError as error:
        raise RecipeError(f"Recipe {path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise RecipeError(f"Recipe {path} is not UTF-8 text; save it as such.") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"Recipe {path} is not valid YAML: {_problem(error)}.") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise RecipeError(f"Recipe {path} must hold `key: value` lines, got {_short(data)}.")
    return data


def _problem(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return error.problem if mark is None else f"{error.problem} in line {mark.line + 1}"


def _override(data: dict[str, Any], override: str) -> None:
    """Put `rl.group_size=8` into the nested mapping."""
    name, equals, text = override.partition("=")
    name = name.strip()
    keys = name.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"An override looks like rl.group_size=8, got {override!r}.")
    if name in _SECTIONS:
        raise RecipeError(f"{name} is a section; set one of its keys, as in {_example(name)}.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        value = text
    for depth, key in enumerate(keys[:-1], 1):
        data.setdefault(key, {})
        if data[key] is None:
            data[key] = {}
        if ".".join(keys[:depth]) in _LEAVES or not isinstance(data[key], dict):
            raise RecipeError(_unknown(name))
        data = data[key]
    data[keys[-1]] = value


def _sections() -> dict[str, type[_Section]]:
    found: dict[str, type[_Section]] = {}
    for name, field in Recipe.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):  # api may be left out
            if isinstance(kind, type) and issubclass(kind, _Section):
                found[name] = kind
    return found


_SECTIONS = _sections()
_KEYS = [n for n in Recipe.model_fields if n not in _SECTIONS] + [
    f"{name}.{key}" for name, kind in _SECTIONS.items() for key in kind.model_fields
]
_LEAVES = frozenset(_KEYS) - {"task.options"}


def _example(section: str) -> str:
    key, field = next(iter(_SECTIONS[section].model_fields.items()))
    return f"{section}.{key}={field.default}"


# --- sentences ------------------------------------------------------------------------------------


def _unknown(name: str) -> str:
    """`Unknown key rl.goup_size. Did you mean rl.group_size?`"""
    section, _, leaf = name.rpartition(".")
    elsewhere = [key for key in _KEYS if key.rpartition(".")[2] == leaf]
    if section in _SECTIONS:
        keys = list(_SECTIONS[section].model_fields)
        near = [f"{section}.{key}" for key in difflib.get_close_matches(leaf, keys, n=1)]
        near = near or elsewhere
        hint = f"Section {section} has {', '.join(keys)}."
    else:
        near = elsewhere or difflib.get_close_matches(name, [*_KEYS, *_SECTIONS], n=1, cutoff=0.7)
        hint = f"There are {', '.join(Recipe.model_fields)}."
    return f"Unknown key {name}. " + (f"Did you mean {' or '.join(near)}?" if near else hint)


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text (in quotes if it looks like a number)",
    "path": "a path",
    "tuple": "a list",
    "dict": "a section of `key: value` lines",
    "model": "a section of `key: value` lines",
}


def _sentence(detail: ErrorDetails) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    kind, context, got = detail["type"], detail.get("ctx", {}), _short(detail["input"])
    if kind in ("extra_forbidden", "invalid_key"):
        return _unknown(name)
    if kind == "value_error":
        problem = str(context["error"])
        is_about_several = not name or name in _SECTIONS
        return f"{problem}." if is_about_several else f"{name} {problem}, got {got}."
    if kind == "literal_error":
        return f"{name} must be one of {context['expected']}, got {got}.{_nearest(detail)}"
    bounds = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    for bound, words in bounds.items():
        if bound in context:
            return f"{name} must be {words} {context[bound]:g}, got {got}."
    wanted = _KINDS.get(kind.partition("_")[0])
    return (
        f"{name} must be {wanted}, got {got}." if wanted else f"{name}: {detail['msg']}, got {got}."
    )


def _nearest(detail: ErrorDetails) -> str:
    options = detail.get("ctx", {})["expected"].replace(" or ", ", ").replace("'", "").split(", ")
    near = difflib.get_close_matches(str(detail["input"]).lower(), options, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _short(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
