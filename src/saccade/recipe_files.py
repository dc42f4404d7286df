"""Recipes as files and flags: reading, writing, hashes, and whether a folder holds the same run.

Invariant: unknown keys, values out of range and keys that stand twice are refused with a sentence
for each. Flags and YAML share the names (`rl.group_size=8`); what is dumped is read back equal.

Left out on purpose: what the keys are and mean (`saccade.config`).
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from saccade.config import BackendKind, Recipe, Section
from saccade.errors import RecipeError

__all__ = [
    "Stage",
    "changed",
    "check_same_run",
    "dump_recipe",
    "load_recipe",
    "recipe_from",
    "recipe_hash",
]


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
    return _validated(data)


def _validated(data: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        sentences = dict.fromkeys(_sentence(detail) for detail in error.errors())
        raise RecipeError("\n".join(sentences)) from None


def recipe_from(text: str) -> Recipe:
    """The recipe that `dump_recipe` wrote. Raises RecipeError like `load_recipe`."""
    try:
        found = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"The recipe of a run can't be read: {reason}.") from None
    return _validated(found)


def changed(recipe: Recipe, settings: Mapping[str, JsonValue]) -> Recipe:
    """The recipe with other values of some keys (`rl.group_size`). Raises RecipeError like
    `load_recipe`.
    """
    data = recipe.model_dump(mode="json", exclude_unset=True)
    for name, value in settings.items():
        _set(data, name, value)
    return _validated(data)


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included; `load_recipe` reads back an equal one."""
    data = recipe.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


Stage = Literal["pretrain", "sft", "rl", "eval"]
_MAY_CHANGE: dict[Stage, frozenset[str]] = {
    "pretrain": frozenset({"steps", "decay_steps", "checkpoint_every", "max_minutes"}),
    "sft": frozenset({"epochs", "steps", "checkpoint_every"}),
    "rl": frozenset({"steps", "checkpoint_every", "eval_every", "eval_items"}),
    "eval": frozenset({"items", "bootstrap"}),
}
"""Keys of a stage's own section with which a run in the same folder may go on."""


_NO_ROLLOUTS = {
    *("model", "dialect", "tool_style", "task", "rollout", "api"),
    *("tools", "backends", "mcp", "notation"),
}
"""What says nothing about pretraining, which asks nobody."""


_ADDED: dict[str, Any] = {
    "backends": {},
    **{f"backends.{kind}.batch": None for kind in get_args(BackendKind)},
    "mcp": {},
    "notation": None,
    "rollout.withheld": [],
    "rollout.request": "",
    "rollout.example": "",
    "eval.control": None,
    "eval.gaze_of": None,
    "task.train_items": None,
    "task.train_ways": 1,
    "sft.steps": None,
    "rl.gate": None,
    "rl.judge": None,
    "rl.keep": "last",
    "rl.mask_truncated": False,
    "pretrain.start": None,
    "pretrain.scenes": 0.0,
    "pretrain.first": 0,
}
"""Keys that recipes did not always have, with what they say where nobody sets them: then they leave
hashes and runs of earlier recipes valid."""


def recipe_hash(recipe: Recipe, *, stage: Stage) -> str:
    """sha256 of what a stage depends on, as canonical JSON: its own section and all common keys,
    but neither the place of the run, the number of threads nor who runs the tools; nor the model
    that is trained, whose own hash stands beside this one.
    """
    told_elsewhere = set() if stage == "eval" else {"model"}
    data = recipe.model_dump(mode="json", exclude=_not_of(stage) | told_elsewhere)
    for key, unset in _ADDED.items():
        *above, last = key.split(".")
        section = data
        for name in above:
            section = section.get(name, {})
        if last in section and section[last] == unset:
            del section[last]
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _not_of(stage: Stage) -> set[str]:
    """Keys of a recipe that say nothing about a stage."""
    others = {"run", "threads", "ladder", "service", *_MAY_CHANGE} - {stage}
    return others | _NO_ROLLOUTS if stage == "pretrain" else others


def check_same_run(stored: str | None, recipe: Recipe, *, stage: Stage) -> None:
    """Raises RecipeError where a run folder holds another recipe's run: its rows and weights would
    be taken for this one's. Sections of other stages do not count, nor does `run`; `threads` count
    under `deterministic`, since sums over more threads are added in another order.
    """
    if stored is None:
        return
    before, now = _with_added(_stored(stored, recipe)), recipe.model_dump(mode="json")
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


def _with_added(stored: dict[str, Any]) -> dict[str, Any]:
    """The same, with keys that recipes got later."""
    completed = copy.deepcopy(stored)
    for key, unset in _ADDED.items():
        *above, last = key.split(".")
        section: Any = completed
        for name in above:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.setdefault(last, unset)
    return completed


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
    if not equals or not all(name.strip().split(".")):
        raise RecipeError(f"An override looks like rl.group_size=8, got {override!r}.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        value = text
    _set(data, name.strip(), value)


def _set(data: dict[str, Any], name: str, value: JsonValue) -> None:
    """Put the value of a key like `rl.group_size` into the nested mapping."""
    if name in _SECTIONS:
        raise RecipeError(f"{name} is a section; set one of its keys, as in {_example(name)}.")
    keys = name.split(".")
    for depth, key in enumerate(keys[:-1], 1):
        data.setdefault(key, {})
        if data[key] is None:
            data[key] = {}
        if ".".join(keys[:depth]) in _LEAVES or not isinstance(data[key], dict):
            raise RecipeError(_unknown(name))
        data = data[key]
    data[keys[-1]] = value


def _sections() -> dict[str, type[Section]]:
    found: dict[str, type[Section]] = {}
    for name, field in Recipe.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):  # api may be left out
            if isinstance(kind, type) and issubclass(kind, Section):
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
