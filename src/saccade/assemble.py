"""From a recipe to the parts of a run: model, renderer, engine, tools, task.

Invariant: everything that a command builds, it builds here, so that SFT, RL, evaluation and `ask`
mean the same by the same recipe.
"""

from __future__ import annotations

import atexit
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar

from saccade.atomic_files import Reading
from saccade.config import Recipe
from saccade.dialects import dialect, notation_named
from saccade.engines import Engine
from saccade.engines.torch import TorchEngine
from saccade.errors import DataError, RecipeError
from saccade.geometry import Frame
from saccade.image_store import ImageStore
from saccade.models.forward import encode_images, load_model
from saccade.recipe_files import Stage, recipe_hash
from saccade.renderers import Renderer, renderer_for
from saccade.rewards import Rubric
from saccade.rollout import Limits, Setup
from saccade.run_folder import RunFolder
from saccade.tasks import Task, task_named
from saccade.tasks.few import Few
from saccade.tools.toolbox import ToolBox
from saccade.toolserver.serving import Served, served
from saccade.types import ImageRef

__all__ = [
    "Policy",
    "answering",
    "check_same_start",
    "data_file",
    "device_of",
    "image_features",
    "is_same_start",
    "lineage_hash",
    "lineage_of",
    "load_policy",
    "made_by",
    "model_folder",
    "prepare",
    "setup_for",
    "task_of",
    "weights_digest",
]

BUILT_IN = ("saccade-tiny", "saccade-tiny-base", "saccade-tiny-grounded-base")


@dataclass(frozen=True, slots=True)
class Policy:
    """A model and the renderer that speaks to it."""

    model: nn.Module
    renderer: Renderer


def model_folder(name: str) -> Path:
    """The folder of a model: a path, or the name of one that comes with saccade."""
    if name in BUILT_IN:
        return Path(str(resources.files("saccade.weights"))) / name
    folder = Path(name)
    if not folder.is_dir():
        raise RecipeError(
            f"No model {name!r}: there is no such folder, and built in are {', '.join(BUILT_IN)}."
        )
    return folder


def check_same_start(folder: RunFolder, recipe: Recipe, *, stage: Stage) -> None:
    """Raises RecipeError where the folder's run was begun from a model or data that have changed
    since: its rows or steps would be taken for those of what is there now.
    """
    before = folder.read_json("start") or {}
    now = {}
    for key, name, files in _start(recipe, stage):
        now[key] = _digest(files)
        if before.get(key, now[key]) != now[key]:
            what = "weights" if key == "sha256" else key
            raise RecipeError(
                f"{str(folder.path)!r} was made from other {what} than {name!r} has now; choose "
                "another folder with --run, or delete that one to make it again."
            )
    if not now.items() <= before.items():
        folder.write_json("start", before | now)


def is_same_start(folder: RunFolder, recipe: Recipe, *, stage: Stage) -> bool:
    """Whether a run was begun from the model and data that are there now; True where nothing says
    from which.
    """
    before = folder.read_json("start") or {}
    now = {key: files for key, _, files in _start(recipe, stage) if key in before}
    return all(before[key] == _digest(files) for key, files in now.items())


def weights_digest(recipe: Recipe) -> str | None:
    """sha256 of the weights of the recipe's model; None behind an endpoint."""
    starts = {key: files for key, _, files in _start(recipe, "eval")}
    return _digest(starts["sha256"]) if "sha256" in starts else None


def _start(recipe: Recipe, stage: Stage) -> Iterator[tuple[str, str, list[Path]]]:
    """What a run begins from: key in `start.json`, name, files. What is not there is left to those
    who read it.
    """
    models = {"sha256": None if recipe.api else recipe.model}
    if stage == "rl" and recipe.rl.kl_beta > 0:
        models["rl.reference"] = recipe.rl.reference
    for key, model in models.items():
        if model is not None:
            yield key, model, sorted(model_folder(model).glob("*.safetensors"))
    data = {"task.path": recipe.task.path}
    if stage == "sft":
        data["sft.demonstrations"] = data_file(recipe.sft.demonstrations)
    for key, path in data.items():
        if path is not None and path.is_file():
            yield key, str(path), [path]


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with Reading(path.name), path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def made_by(recipe: Recipe, *, stage: Stage, start: str | None) -> dict[str, object]:
    """Where weights come from, as stored beside them: hash of the recipe for that stage, its seed,
    and the same of the model it started from.
    """
    before = None if start is None else lineage_of(start)
    digest = recipe_hash(recipe, stage=stage)
    return {"stage": stage, "recipe": digest, "seed": recipe.seed, "from": before}


def lineage_hash(recipe: Recipe) -> str | None:
    """sha256 of where the recipe's model comes from, as canonical JSON; None where nobody stored
    that beside it, or it is behind an endpoint.
    """
    told = None if recipe.api else lineage_of(recipe.model)
    if told is None:
        return None
    canonical = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def lineage_of(model: str) -> object:
    """What `made_by` stored beside a model's weights; None where there is nothing."""
    told = model_folder(model) / "saccade.json"
    if not told.is_file():
        return None
    with Reading(told.name):
        text = told.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{told.name} of model {model!r} is no JSON: {error}.") from None


def data_file(path: Path) -> Path:
    """A file by path, or one that comes with the recipes."""
    shipped = Path(str(resources.files("saccade.recipes"))) / path
    return shipped if not path.exists() and shipped.is_file() else path


def prepare(recipe: Recipe) -> None:
    """Threads of the recipe; under `deterministic` only algorithms that repeat their results."""
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(recipe.deterministic)


def load_policy(recipe: Recipe, *, model: str | None = None) -> Policy:
    """The recipe's model (or another one), under the recipe's image budget."""
    prepare(recipe)
    if recipe.api is not None:
        raise RecipeError("A model behind an endpoint can't be loaded or trained; remove api.")
    folder = model_folder(model or recipe.model)
    renderer = renderer_for(
        folder,
        min_image_tokens=recipe.min_image_tokens,
        max_image_tokens=recipe.max_image_tokens,
        notation=recipe.notation,
    )
    disable_progress_bar()  # ours are the only bars
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Policy(load_model(folder).to(device), renderer)


def device_of(policy: Policy) -> torch.device:
    """Where the model's weights are."""
    return policy.model.get_input_embeddings().weight.device


def task_of(recipe: Recipe) -> Task:
    """The recipe's task; `charts` is told the image budget, which decides what is `easy`."""
    options: dict[str, object] = dict(recipe.task.options)
    if recipe.task.path is not None:
        options["path"] = recipe.task.path
    if recipe.task.name == "charts":
        options.setdefault("max_image_tokens", recipe.max_image_tokens)
    task = task_named(recipe.task.name, options)
    if recipe.task.train_items is None:
        return task
    items, ways = recipe.task.train_items, recipe.task.train_ways
    return Few(task, items=items, seed=recipe.seed, ways=ways)


def _served(recipe: Recipe) -> Served:
    """The tools and what runs them, one for all setups of a process: it may have processes of its
    own, which end with this one.
    """
    which = recipe.model_dump_json(include={"tools", "backends", "service", "mcp"})
    if which not in _all_served:
        _all_served[which] = served(recipe)
        atexit.register(_all_served[which].controller.close)
    return _all_served[which]


_all_served: dict[str, Served] = {}


def setup_for(
    recipe: Recipe, policy: Policy | None, *, store: ImageStore, rubric: Rubric | None = None
) -> Setup:
    """Engine, tools, dialect and limits of the recipe; without a policy, its endpoint is asked."""
    engine: Engine
    if policy is None:
        engine = _endpoint(recipe, store)
    else:
        engine = TorchEngine(
            policy.model,
            policy.renderer,
            store=store,
            max_batch=recipe.rollout.concurrency,
            barrier=recipe.deterministic,
        )
    toolbox = None
    given = [name for name in recipe.tools if name not in recipe.rollout.withheld]
    notation = None if recipe.notation is None else notation_named(recipe.notation)
    if notation is None and policy is not None:
        notation = policy.renderer.notation
    speaks = dialect(recipe.dialect, style=recipe.tool_style, tools=recipe.tools, notation=notation)
    if given and speaks.can_call:
        tools, controller = _served(recipe)
        tools = [t for t in tools if t.name not in recipe.rollout.withheld]
        toolbox = ToolBox(
            tools, store=store, deadline_s=recipe.rollout.tool_deadline_s, runner=controller
        )
        controller.make_room(recipe.rollout.concurrency * toolbox.max_calls)
    return Setup(
        engine=engine,
        dialect=speaks,
        store=store,
        toolbox=toolbox,
        renderer=policy.renderer if policy else None,
        frame=_frame(recipe) if policy is None else None,
        notation=notation,
        limits=Limits(
            recipe.rollout.max_turns,
            recipe.rollout.max_tokens_per_turn,
            recipe.rollout.max_context_tokens,
        ),
        observation=recipe.rollout.observation,
        pictures=recipe.rollout.pictures,
        request=recipe.rollout.request,
        example=recipe.rollout.example,
        rubric=rubric,
    )


def answering(recipe: Recipe, *, store: ImageStore, rubric: Rubric | None = None) -> Setup:
    """The setup of a recipe that is only asked: its model loaded here, or its endpoint."""
    policy = load_policy(recipe) if recipe.api is None else None
    return setup_for(recipe, policy, store=store, rubric=rubric)


def _endpoint(recipe: Recipe, store: ImageStore) -> Engine:
    from saccade.engines.api import ApiEngine

    if recipe.api is None:
        raise RecipeError("Training needs a model that is loaded here; remove the section api.")
    return ApiEngine(
        recipe.model,
        store=store,
        base_url=recipe.api.base_url,
        images=recipe.api.images,
        max_image_pixels=recipe.api.max_image_pixels,
        timeout_s=recipe.api.timeout_s,
        retries=recipe.api.retries,
        concurrency=recipe.rollout.concurrency,
    )


def _frame(recipe: Recipe) -> Callable[[ImageRef], Frame]:
    assert recipe.api is not None
    make = getattr(Frame, recipe.api.frame)
    return lambda image: make(image.width, image.height)


def image_features(
    policy: Policy, images: Iterable[ImageRef], *, store: ImageStore
) -> dict[str, torch.Tensor]:
    """Features (tokens, D) of each distinct image by key; gradients flow where they are on."""
    distinct = list({i.key: i for i in images}.values())
    patches = [policy.renderer.patches(i, store.view(i).pixels) for i in distinct]
    grids = [policy.renderer.grid(i) for i in distinct]
    found = encode_images(policy.model, patches, grids)
    return {i.key: f for i, f in zip(distinct, found, strict=True)}
