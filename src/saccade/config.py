"""What a recipe holds: every key with its type, its range and its help.

Invariant: a `Recipe` that exists can be run as far as its own values say. Paths are relative to the
working directory.

Left out on purpose: files and flags (`saccade.recipe_files`), Python paths, environment variables,
and checks of a task's own options, which the task makes itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

__all__ = [
    "ApiConfig",
    "ArmConfig",
    "EvalConfig",
    "LadderConfig",
    "PretrainConfig",
    "Recipe",
    "RlConfig",
    "RolloutConfig",
    "Section",
    "SftConfig",
    "TaskConfig",
]

Positive = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of a recipe: nothing but its own keys, and no value changes after it was made."""

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


class TaskConfig(Section):
    """What is asked."""

    name: str = "charts"
    """Name of the task: `charts`, `files`, or one of your own."""
    path: Path | None = None
    """JSONL file of the task `files`."""
    options: dict[str, JsonValue] = {}
    """Arguments of the task by name; the task refuses those that it does not know."""
    train_items: Positive | None = None
    """Items of split `train` that training reads, round after round, others at each seed; null:
    all.
    """
    train_ways: Positive = 1
    """Ways in which each of these is shown: as it is, and with its pictures smaller elsewhere."""

    @model_validator(mode="after")
    def _ways_are_of_few_items(self) -> TaskConfig:
        if self.train_ways > 1 and self.train_items is None:
            raise ValueError(
                "task.train_ways is above 1, but task.train_items is not set: say how many items "
                "are shown in several ways"
            )
        return self

    @model_validator(mode="after")
    def _files_need_a_path(self) -> TaskConfig:
        if self.name == "files" and self.path is None:
            raise ValueError(
                "task.path is not set, but task files reads one: set task.path=FILE.jsonl"
            )
        return self


class RolloutConfig(Section):
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
    observation: Literal["image", "text", "none", "swapped", "black"] = "image"
    """Shown of what a tool returns: its pictures; a sentence with their name, size and place; only
    that it was done; what the same call returns on another sample's pictures; or black pictures.
    """

    pictures: Literal["shown", "hidden"] = "shown"
    """`hidden`: the question without its pictures, for what can be answered blindly."""
    request: str = ""
    """Said behind each question, like how to think."""
    example: str = ""
    """Said before each question: a worked example, in words."""
    withheld: tuple[str, ...] = ()
    """Tools of the recipe that the model is not given: it is not told of them, and calls to them
    are mistakes. Its dialect knows their words, so that what it learned to write means the same."""

    @model_validator(mode="after")
    def _a_turn_fits_the_context(self) -> RolloutConfig:
        if self.max_tokens_per_turn >= self.max_context_tokens:
            raise ValueError(
                "rollout.max_tokens_per_turn must be less than rollout.max_context_tokens "
                f"({self.max_context_tokens}), got {self.max_tokens_per_turn}"
            )
        return self


class SftConfig(Section):
    """Cold start on demonstrations."""

    demonstrations: Path = Path("demonstrations.jsonl")
    """JSONL file of what a model should have said: `sample`, `turns` and `quality` in each line."""
    count: Positive | None = None
    """Demonstrations to train on, drawn from the file by the seed; null: all of them."""
    epochs: Positive = 10
    """Passes over the demonstrations."""
    steps: Positive | None = None
    """Optimiser steps in the place of passes, for as many of few demonstrations as of many; null:
    those of `epochs`."""
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


class JudgeConfig(Section):
    """A model behind an OpenAI-compatible endpoint that says whether answers are right; the key is
    read from OPENAI_API_KEY.
    """

    model: str = "judge"
    """Its name, as the endpoint knows it."""
    base_url: str = "http://127.0.0.1:8000/v1"
    """Address of the endpoint, up to and including its version."""
    cache: Path | None = None
    """File that keeps what it said, for this run and others; null: in memory."""
    timeout_s: Rate = 60.0
    """Without a byte of an answer."""
    retries: Whole = 4
    """After errors that may pass; then the episode stays unscored."""


class RlConfig(Section):
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
    mask_truncated: bool = False
    """Learn nothing from episodes that a token budget cut off, as DAPO's overlong filtering; they
    still count in their group's mean. false: what was cut off is an answer that never came."""
    credit: Literal["episode", "turn"] = "episode"
    """One advantage for a whole episode, or one for each turn from what its tools returned."""
    reward: str | dict[str, float] = "answer_published"
    """Name of the reward, or names with their weights; the published one gives +1 or -1 at the
    end."""
    gate: str | None = None
    """Name of a reward: where it is not above 0, the others pay nothing."""
    judge: JudgeConfig | None = None
    """Whom the reward `judge` asks."""
    freeze_vision: bool = False
    """Leave the vision encoder as it is."""
    checkpoint_every: Positive = 20
    """Rollout batches between checkpoints."""
    eval_every: Whole = 20
    """Rollout batches between evaluations; 0: none."""
    eval_items: Positive = 100
    """Validation samples for each of these evaluations."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the model: those of the last batch, or those that were best on
    validation (early stopping), the start among them."""

    @model_validator(mode="after")
    def _best_is_measured(self) -> RlConfig:
        if self.keep == "best" and not self.eval_every:
            raise ValueError("rl.keep best needs evaluations: set rl.eval_every above 0, got 0")
        return self


class PretrainConfig(Section):
    """Base training of a tiny model on captions, boxes and plain questions; nothing of tools."""

    start: str | None = None
    """Model that goes on learning, with tokens for what it lacked; null: a new one."""
    scenes: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of pictures that are scenes of shapes; the others are charts."""
    first: Whole = 0
    """Number of the first picture, for a model that goes on: those before it were its start's."""
    steps: Positive = 6000
    """Optimiser steps."""
    charts_per_step: Positive = 8
    """Pictures for each optimiser step."""
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


class ApiConfig(Section):
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


BackendKind = Literal["reader", "detector", "pointer", "segmenter"]


class BackendChoice(Section):
    """What does the looking inside tools."""

    name: str | None = None
    """Of the back end; `saccade tools list` names them. null: the default one of its kind."""
    model: str | None = None
    """Folder or hub id of its weights, where it has any; null: its own choice."""
    device: str = "cpu"
    """Where its model runs."""
    threads: Positive = 1
    """Of the processor, for one call."""
    batch: Positive | None = None
    """Calls that its model answers in one pass, where as many wait; null: 8 on a GPU, and 1 on a
    processor, where a pass of eight takes as long as eight. Worker processes take one at a time."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class ServiceConfig(Section):
    """Who runs the tools; what they return is the same."""

    way: Literal["inprocess", "workers", "ray", "remote"] = "inprocess"
    """Threads of the run itself, worker processes of this machine, replicas of Ray Serve, or
    `saccade serve tools` elsewhere."""
    groups: dict[str, tuple[str, ...]] = {}
    """Tools that share the processes of a group, by its name; tools in none share one more, and
    those with back ends have one each. For `workers` and `ray`."""
    processes: dict[str, Positive] = {}
    """Of each group; 1 for groups that are left out."""
    autoscale_to: dict[str, Positive] = {}
    """Most processes of a group, where `ray` may start more than the above as calls come."""
    gpus: dict[str, Weight] = {}
    """Share of a GPU that each process of a group takes, for `ray`."""
    ray_address: str | None = None
    """Of a cluster, of which only our own deployments are ended; null: one is started on this
    machine for this run, whatever RAY_ADDRESS says."""
    memory_mb: Positive | None = 4096
    """Address space of a worker process beyond what it starts with; null: no limit."""
    niceness: Annotated[int, Field(ge=0, le=19)] = 0
    """Of worker processes; 0 to 19, higher gives way to others."""
    cpus: dict[str, Positive] = {}
    """Processors that the processes of a group share, on Linux; all for groups that are left out.
    With `ray`: what its replicas reserve together."""
    urls: tuple[str, ...] = ()
    """Addresses of services that have all the tools, for `remote`; those that fail are left out for
    a while."""
    deadline_s: Rate = 60.0
    """Most seconds that a service gives a call, whatever its caller asks for."""
    calls_per_caller: Positive = 256
    """Calls of one tool that a service runs or lets wait for one address; others are told to come
    again."""
    picture_bytes: Positive = 16 * 2**20
    """Of a picture file that a service takes."""
    picture_pixels: Positive = 6_000_000
    """Of a picture that a service takes; reading one needs up to 25 bytes of memory for each."""
    held_mb: Positive = 48
    """Pictures that a service holds for its callers."""
    in_flight_mb: Positive = 32
    """Requests that a service reads at the same time, all together; others wait."""


class McpConfig(Section):
    """A server of the Model Context Protocol of which tools are used."""

    url: str | None = None
    """Where it is; its token, if it wants one, is in the environment variable `token`."""
    command: tuple[str, ...] = ()
    """Or how it is started, to speak on its standard streams."""
    token: str | None = None
    """Name of an environment variable, never the secret itself."""
    images: dict[str, tuple[str, ...]] = {}
    """Of its tools, the arguments that take a picture; their schemas seldom say so."""
    pictures_as: Literal["data_uri", "base64"] = "data_uri"
    """How it takes them."""

    @model_validator(mode="after")
    def _one_place(self) -> McpConfig:
        if (self.url is None) == (not self.command):
            raise ValueError("needs either url or command")
        return self


class EvalConfig(Section):
    """How a model is measured."""

    split: str = "test"
    """Split of the task."""
    items: Positive = 500
    """Samples, from the start of the split."""
    temperature: Weight = 0.0
    """Of sampling; 0 takes the most likely token."""
    bootstrap: Positive = 10_000
    """Resamples for the 95% intervals."""
    control: (
        Literal["stripped", "shuffled", "random", "exchanged", "jittered"]
        | Literal["gaze-masked", "rest-masked", "random-masked"]
        | None
    ) = None
    """Asks each sample twice, the second time with other boxes in the chain of the first, or
    other pixels; the second answer is measured. null: once."""
    gaze_of: Path | None = None
    """Folder of an evaluation of the same items whose boxes are masked, in a ladder the name of an
    arm; null: those that the measured model wrote itself."""

    @model_validator(mode="after")
    def _gaze_is_masked(self) -> EvalConfig:
        if self.gaze_of is not None and not (self.control or "").endswith("masked"):
            raise ValueError(
                "eval.gaze_of says whose boxes are masked, so it needs an eval.control that masks: "
                f"gaze-masked, rest-masked or random-masked, got {self.control}"
            )
        return self


_RATES = "all arms try the same rates, ladder.sft_rates and ladder.rl_rates"
_ITEMS = "all arms are asked the same items, eval.items of each of ladder.splits"
_ROLLOUTS = "all arms of rl have equal prompts, rollouts and steps"
SAME_FOR_ALL_ARMS = {
    "sft.learning_rate": _RATES,
    "rl.learning_rate": _RATES,
    "eval.items": _ITEMS,
    "eval.split": _ITEMS,
    "rl.steps": _ROLLOUTS,
    "rl.prompts_per_step": _ROLLOUTS,
    "rl.group_size": _ROLLOUTS,
    "seed": "all arms have the seeds of ladder.seeds",
    "run": "an arm's place is in the folder of its ladder",
}
"""Keys that no arm may set, and why."""


class ArmConfig(Section):
    """An arm of a ladder: a model that is trained or only asked, in a way that differs from its
    neighbour's by as little as can be.
    """

    like: str | None = None
    """The neighbour whose settings it has unless it says otherwise; null: the recipe's own."""
    stage: Literal["eval", "sft", "rl", "score"] | None = None
    """How its model is made: asked as it is, fine-tuned, trained by rewards; `score`: episodes that
    were made elsewhere."""
    start: str | None = None
    """The arm whose model it starts from, at the same seed; null: the recipe's model."""
    data: (
        Literal["demonstrations", "answers", "kept", "chains", "self-made", "self-made-blank"]
        | None
    ) = None
    """What `sft` learns from: the recipe's demonstrations, the right answers to the questions that
    `rl` sees, right rollouts of `start` on these questions, or chains with the right boxes for
    them; `self-made`: what follows from the boxes that `start` points at in other questions;
    `self-made-blank`: the same with dots for the boxes, as many as their tokens."""
    set: dict[str, JsonValue] = {}
    """Keys of the recipe with their values in this arm, like `rollout.observation: text`."""
    episodes: Path | None = None
    """JSONL file of episodes, for `score`; `{split}` stands for the split."""


class ClaimConfig(Section):
    """One thing that a ladder must show of an arm: that it is above others, or within bounds."""

    arm: str | None = None
    """The arm that is spoken of; null: the tested one."""
    above: tuple[str, ...] = ()
    """Arms that it is compared with, each by itself; none: its own figure is compared."""
    metric: Literal[
        "accuracy", "lenient", "f1", "mean_iou", "acc_at_0_5", "invalid", "redundant", "changed"
    ] = "accuracy"
    """Figure of an answer."""
    strata: tuple[str, ...] = ("all",)
    """Of the items, each by itself."""
    kinds: tuple[str, ...] = ()
    """Of the questions, each by itself, in the place of strata; for figures of one arm."""
    at_checkpoints: bool = False
    """Of its share of invalid or redundant boxes: the largest of all validations on the way, of all
    seeds, in the place of the end's. It is a plain number, and decides by itself."""
    more_than: float | None = None
    """All of the 95% interval of the difference, or of the figure, is above this; 0.01 is a
    point."""
    at_least: float | None = None
    """The same, and the bound itself is enough."""
    less_than: float | None = None
    """All of the interval is below this."""
    not_below: float | None = None
    """The margin of a claim that nothing is lost: -0.03 is met where a loss of three points is
    ruled out (all of the interval is above), missed where more is lost for sure (all of it is
    below), and not decided where the interval holds the margin."""

    @model_validator(mode="after")
    def _one_bound(self) -> ClaimConfig:
        bounds = (self.more_than, self.at_least, self.less_than, self.not_below)
        if sum(bound is not None for bound in bounds) != 1:
            raise ValueError(
                "a claim needs just one of more_than, at_least, less_than and not_below"
            )
        if self.above and (self.kinds or self.at_checkpoints):
            raise ValueError(
                "a claim with kinds or at_checkpoints is about one arm: leave out above"
            )
        if self.not_below is not None and not self.above:
            raise ValueError("a claim with not_below is about a difference: say above which arms")
        if self.at_checkpoints and self.metric not in ("invalid", "redundant"):
            raise ValueError(
                f"a claim at_checkpoints is about invalid or redundant, got {self.metric}"
            )
        return self


class LadderConfig(Section):
    """Arms that are trained and measured together, and how their figures are compared."""

    arms: dict[str, ArmConfig] = {}
    """By name, in the order in which they are told; an arm stands behind those that it names."""
    only: tuple[str, ...] = ()
    """Arms to run, with those that they start from; empty: all."""
    tested: str = "v-toolrl"
    """The arm that the others are compared with."""
    reference: str = "rl-no-tools"
    """The arm that gain and harm are counted against."""
    steps: tuple[tuple[str, str], ...] = ()
    """Further pairs of arms whose difference is told, as [above, below]."""
    claims: tuple[ClaimConfig, ...] = ()
    """What the ladder must show; empty: what a ladder of `easy` and `look` must."""
    self_made: Positive = 2000
    """Questions that self-made demonstrations are asked of, and as many others for an arm that
    starts from one that had them."""
    self_made_tries: Positive = 1
    """Times that the model is asked where things are, first greedily, then with draws at
    temperature 1; all that it points at counts."""
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """Each decides which demonstrations are drawn, their order and all rollouts."""
    splits: tuple[str, ...] = ("test",)
    """Splits that all arms are measured on; intervals cover seeds and charts."""
    intervals: Literal["resampling", "student"] = "resampling"
    """Of seeds: drawn again with replacement, or Student's t of their means, which is wider and
    honest for few seeds that differ much."""
    sft_rates: tuple[Rate, ...] = ()
    """Learning rates that every arm with stage sft tries at the first seed; the best one on
    `validation` is taken for all seeds. Empty: that of the recipe."""
    rl_rates: tuple[Rate, ...] = ()
    """The same for every arm with stage rl."""
    validation: str = "validation"
    """Split that rates are chosen on."""
    validation_items: Positive = 200
    """Samples of it."""
    rollouts_kept: Positive = 4
    """Rollouts for each question where arms learn from right rollouts; at most one is kept."""
    jobs: Positive = 1
    """Runs at the same time, each in a process of its own with `threads` threads."""

    @model_validator(mode="after")
    def _arms_are_known(self) -> LadderConfig:
        known: list[str] = []
        for name, arm in self.arms.items():
            for key, other in (("like", arm.like), ("start", arm.start)):
                if other is not None and other not in known:
                    raise ValueError(
                        f"ladder.arms.{name}.{key} must name an arm above it "
                        f"({', '.join(known) or 'there is none'}), got {other}"
                    )
            known.append(name)
        for key in ("tested", "reference"):
            if self.arms and key in self.model_fields_set and getattr(self, key) not in known:
                raise ValueError(
                    f"ladder.{key} must be one of {', '.join(known)}, got {getattr(self, key)}"
                )
        compared = [name for pair in self.steps for name in pair]
        claimed = [n for c in self.claims for n in (c.arm, *c.above) if n is not None]
        told = (("only", self.only), ("steps", compared), ("claims", claimed))
        for key, names in told:
            for other in names:
                if other not in known:
                    raise ValueError(
                        f"ladder.{key} must name arms ({', '.join(known)}), got {other}"
                    )
        if self.arms and self.validation in self.splits:
            raise ValueError(
                "ladder.validation must be none of ladder.splits, since learning rates are chosen "
                f"on it, got {self.validation}"
            )
        for name, arm in self.arms.items():
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise ValueError(
                    "ladder.arms must have names of letters, digits, '.', '+', '-' and '_', since "
                    f"they name folders, got {name!r}"
                )
            for key in sorted(SAME_FOR_ALL_ARMS.keys() & arm.set.keys()):
                raise ValueError(
                    f"ladder.arms.{name}.set can't hold {key}: {SAME_FOR_ALL_ARMS[key]}"
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"ladder.seeds must be different numbers, got {list(self.seeds)}")
        return self


class Recipe(Section):
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
    dialect: Literal["grounded", "hermes", "mixed", "openthinkimg", "plain", "pointing"] = "hermes"
    """Text form of tool calls, or of reasoning with boxes."""
    notation: Literal["inline", "json", "qwen2", "internvl"] | None = None
    """How the model writes boxes into its thoughts; null: as its family was taught."""
    tool_style: Literal["schema", "signature", "silent"] = "schema"
    """How the prompt describes tools: JSON schemas, one short line for each, or not at all, for a
    model that knows them from its demonstrations."""
    tools: tuple[str, ...] = ("zoom", "crop")
    """Tools that the model may call, by name; the answer action comes with them. []: no tools at
    all, and the model is told of none."""
    backends: dict[BackendKind, BackendChoice] = {}
    """What does the looking inside tools, by kind; kinds that are left out take the default."""
    service: ServiceConfig = ServiceConfig()
    mcp: dict[str, McpConfig] = {}
    """Servers that offer tools, by any name; `tools` may hold theirs."""
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
    ladder: LadderConfig = LadderConfig()
    api: ApiConfig | None = None
    """Where `model` is asked instead of being loaded: for `eval`, `rollout` and `ask`."""

    @field_validator("tools")
    @classmethod
    def _each_tool_once(cls, tools: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({t for t in tools if tools.count(t) > 1}):
            raise ValueError(f"must name each tool once, but {', '.join(twice)} stands twice")
        return tools

    @model_validator(mode="after")
    def _tools_are_there(self) -> Recipe:
        if strange := [t for t in self.rollout.withheld if t not in self.tools]:
            raise ValueError(
                f"rollout.withheld must name tools of the recipe ({', '.join(self.tools)}), "
                f"got {', '.join(strange)}"
            )
        return self

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
