"""The renderer of Qwen3-VL: as Qwen2-VL, but for larger patches, other levels, its frame and its
notation.

Positions of pictures are those of Qwen2-VL; what the model makes of them (frequencies of time, row
and column in turn) is its own business. Frame 0..1000 and JSON with `bbox_2d` are what its cookbook
uses.

Left out on purpose: videos, and with them timestamps, which no picture has.
"""

from __future__ import annotations

from typing import ClassVar

from saccade.renderers.chatml import ChatMl
from saccade.renderers.qwen2vl import Qwen2VLRenderer, Qwen2VLSettings

__all__ = ["Qwen3VLRenderer"]

HALF = (0.5, 0.5, 0.5)


class Qwen3VLRenderer(Qwen2VLRenderer):
    """Turns messages and pictures into what a Qwen3-VL model reads, and ids back into text."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    family: ClassVar[str] = "Qwen3-VL"
    deviations: ClassVar[tuple[str, ...]] = (
        "Tools are described in the system message by the dialect, and not in the words of the "
        "shipped template.",
        *ChatMl.deviations[1:],
        "A turn of the model begins at its header; the template of Thinking models opens <think>.",
    )

    @classmethod
    def usual(cls, model_type: str) -> Qwen2VLSettings:
        return Qwen2VLSettings(
            patch=16, mean=HALF, std=HALF, coordinates="thousand", notation="json"
        )
