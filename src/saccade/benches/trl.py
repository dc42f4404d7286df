"""The other side of `saccade bench rl`: TRL's GRPOTrainer on the same folder, prompts and pictures.

Invariant: TRL is used as it is: its trainer, its loop of tools, plain `from_pretrained`. Ours are
the processor without videos (the stock one can't be built beside this torch), the chat template
(ours, so that both sides say the same, to the token), and the environment, whose one tool returns
the same pictures.

Where a setting is free, the faster one for TRL is taken: pictures are decoded beforehand, nothing
is logged or saved, gradients are not checkpointed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    AutoTokenizer,
    PrinterCallback,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    TrainerCallback,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from trl import GRPOConfig, GRPOTrainer

from saccade.benches.play import answered_number, view_at
from saccade.config import Recipe
from saccade.errors import SaccadeError
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.types import ImageShown, Message, Text

__all__ = ["TrlStep", "play_with_trl"]

TEMPLATE = """\
{%- macro said(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{ '<|im_start|>user\n<tool_response>\n' }}{{ said(message.content) }}
{{- '\n</tool_response><|im_end|>\n' }}
{%- else -%}
{{ '<|im_start|>' + message.role + '\n' }}{{ said(message.content) }}
{%- for call in message.tool_calls or [] -%}
{{ '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""
"""The form of our renderer and dialect. The tools stand in the system message, as they do in ours.
"""
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
"""How calls are read from what the model wrote."""


@dataclass(frozen=True, slots=True)
class TrlStep:
    """One step of TRL."""

    rollout_seconds: float
    """Of these, up to the first reward."""
    picture_seconds: float
    """Of these, in the processor of pictures, which is asked for each of them several times."""
    seconds: float
    """From the end of the step before to the end of this one: data, rollouts, rewards, update."""
    cpu_seconds: float
    """Processor time of the step."""
    prompt_tokens: int
    """Of each prompt; all are equal."""
    completion_tokens: int
    """Of each episode behind its prompt, what the tool said included."""
    generated_tokens: int
    """Of these, what the model wrote."""
    pictures: int
    """That an episode holds when it is trained."""


class _Processor(Qwen2VLProcessor):
    """The stock processor without videos."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


class _Pictures(Qwen2VLImageProcessorPil):
    """The stock processor of pictures, with a clock."""

    seconds = 0.0

    def preprocess(self, *arguments: Any, **settings: Any) -> Any:
        began = time.perf_counter()
        made = super().preprocess(*arguments, **settings)
        _Pictures.seconds += time.perf_counter() - began
        return made


class _Environment:
    """One episode's picture and the tool that looks at it."""

    def reset(self, images: Sequence[Image.Image], **_: object) -> None:
        self._image = images[0]

    def glance(self, image: str, x: float, y: float) -> list[dict[str, Any]]:
        """Look at the surroundings of a place more closely.

        Args:
            image: name of an image
            x: place along the width
            y: place along the height
        """
        width, height = self._image.size
        box = view_at(self._image, x * width / 1000, y * height / 1000)
        return [
            {"type": "text", "text": "img_1: "},
            {"type": "image", "image": self._image.crop(box)},
        ]


class _Clock(TrainerCallback):
    """Takes the time of each step, and lets the other side play between steps."""

    def __init__(self, between: Callable[[], None], *, steps: int) -> None:
        self.rolled = 0.0
        """When the last rewards were asked for: rollouts are done, the update comes."""
        self.spans: list[tuple[float, float, float, float]] = []
        """Of each step, seconds of the rollouts, of pictures, of all, and processor time."""
        self._between = between
        self._steps = steps

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        whole, cpu = time.perf_counter() - self._began, time.process_time() - self._worked
        self.spans.append((self.rolled - self._began, _Pictures.seconds, whole, cpu))
        if len(self.spans) < self._steps:
            self._start()

    def _start(self) -> None:
        self._between()
        _Pictures.seconds = 0.0
        self._began, self._worked = time.perf_counter(), time.process_time()


def play_with_trl(
    recipe: Recipe,
    prompts: Sequence[Sequence[Message]],
    pictures: Sequence[Image.Image],
    *,
    steps: int,
    micro_batch: int,
    between: Callable[[], None],
) -> tuple[list[TrlStep], dict[str, Any]]:
    """Steps of TRL, and its settings by name. `prompts` and `pictures` are those of all steps, in
    order, one picture for each; `between` is called before each step and its time is not counted.
    """
    folder = Path(recipe.model)
    renderer = Qwen2VLRenderer.from_pretrained(folder)
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    if recipe.rl.freeze_vision:
        model.model.visual.requires_grad_(False)
    clock = _Clock(between, steps=steps)

    def answered(completions: Sequence[Sequence[Mapping[str, Any]]], **_: object) -> list[float]:
        clock.rolled = time.perf_counter()
        return [answered_number(_answer(c[-1])) for c in completions]

    with TemporaryDirectory() as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not ours to mend
        config = _config(recipe, renderer, out=out, steps=steps, micro_batch=micro_batch)
        trainer = _Watched(
            model=model,
            reward_funcs=answered,
            args=config,
            train_dataset=_dataset(prompts, pictures),
            processing_class=_processor(folder),
            environment_factory=_Environment,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)  # it would print in the midst of our JSON
        trainer.train()
    played = [
        TrlStep(*span, *counts) for span, counts in zip(clock.spans, trainer.found, strict=True)
    ]
    return played, _settings(config, model)


class _Watched(GRPOTrainer):
    """The trainer, with a look at what it is about to train: counts, and nothing else."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.found: list[tuple[int, int, int, int]] = []

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        made = super()._generate_and_score_completions(inputs)
        wrote = made["completion_mask"] * made["tool_mask"]
        self.found.append(
            (
                _same(made["prompt_mask"].sum(1), "tokens in a prompt"),
                _same(made["completion_mask"].sum(1), "tokens behind a prompt"),
                _same(wrote.sum(1), "tokens that the model wrote"),
                # TRL drops the pixels of a whole batch where pads and features differ
                _same(torch.tensor(made["num_images"] or [0]), "pictures in an episode"),
            )
        )
        return made


def _same(counts: torch.Tensor, what: str) -> int:
    """The count that all episodes share. Raises SaccadeError where they differ."""
    low, high = int(counts.min()), int(counts.max())
    if low != high:
        raise SaccadeError(f"TRL's episodes differ in {what}: {low} to {high}; measure again.")
    return low


def _answer(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls") or []
    arguments = calls[0]["function"]["arguments"] if calls else {}
    return str(arguments.get("ans", "")) if isinstance(arguments, dict) else ""


def _processor(folder: Path) -> _Processor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.response_template = RESPONSE
    return _Processor(_Pictures.from_pretrained(folder), tokenizer, chat_template=TEMPLATE)


def _dataset(prompts: Sequence[Sequence[Message]], pictures: Sequence[Image.Image]) -> Dataset:
    """Rows that are made when asked for: pictures stay decoded, where a stored data set would hold
    them as files.
    """

    def rows(numbers: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        return {
            "prompt": [_conversation(prompts[n]) for n in numbers["number"]],
            "images": [[pictures[n]] for n in numbers["number"]],
        }

    return Dataset.from_dict({"number": list(range(len(prompts)))}).with_transform(rows)


def _conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Our messages in the form of transformers."""
    told = []
    for message in messages:
        parts: list[dict[str, str]] = []
        for part in message.parts:
            if isinstance(part, Text):
                parts.append({"type": "text", "text": part.text})
            elif isinstance(part, ImageShown):
                parts.append({"type": "image"})
        told.append({"role": message.role, "content": parts})
    return told


def _config(
    recipe: Recipe, renderer: Qwen2VLRenderer, *, out: str, steps: int, micro_batch: int
) -> GRPOConfig:
    episodes = recipe.rl.prompts_per_step * recipe.rl.group_size
    return GRPOConfig(
        output_dir=out,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        seed=recipe.seed,
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=episodes // micro_batch,
        steps_per_generation=episodes // micro_batch,
        num_generations=recipe.rl.group_size,
        num_iterations=recipe.rl.updates_per_batch,
        max_completion_length=recipe.rollout.max_tokens_per_turn * recipe.rollout.max_turns + 64,
        max_tool_calling_iterations=recipe.rollout.max_turns - 1,
        temperature=recipe.rollout.temperature,
        generation_kwargs={"suppress_tokens": list(renderer.suppressed_ids)},
        learning_rate=recipe.rl.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.98,
        weight_decay=recipe.rl.weight_decay,
        max_grad_norm=recipe.rl.max_grad_norm,
        loss_type="grpo",
        scale_rewards="group" if recipe.rl.scale_advantages else "none",
        epsilon=recipe.rl.clip_low,
        epsilon_high=recipe.rl.clip_high,
        beta=recipe.rl.kl_beta,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


SHOWN = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_generations",
    "num_iterations",
    "max_completion_length",
    "max_tool_calling_iterations",
    "temperature",
    "generation_kwargs",
    "learning_rate",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "weight_decay",
    "max_grad_norm",
    "loss_type",
    "scale_rewards",
    "epsilon",
    "epsilon_high",
    "beta",
    "gradient_checkpointing",
    "use_vllm",
    "torch_compile",
    "bf16",
    "fp16",
    "use_cpu",
)


def _settings(config: GRPOConfig, model: torch.nn.Module) -> dict[str, Any]:
    found = {name: getattr(config, name) for name in SHOWN}
    return {
        **{
            n: v if isinstance(v, int | float | str | dict | None) else str(v)
            for n, v in found.items()
        },
        "attn_implementation": model.config._attn_implementation,
        "dtype": str(model.dtype).removeprefix("torch."),
        "vision_trained": any(p.requires_grad for p in model.model.visual.parameters()),
        "image_processor": Qwen2VLImageProcessorPil.__name__,
    }
