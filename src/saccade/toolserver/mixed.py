"""Some tools run one way and some another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saccade.tools.running import Returned
from saccade.tools.spec import Tool
from saccade.toolserver.controller import Health, Way

__all__ = ["Mixed"]


class Mixed:
    """Tools that are named run their own way, all others the usual one."""

    def __init__(self, usual: Way, named: Mapping[str, Way]) -> None:
        self._usual = usual
        self._named = dict(named)

    def capacity(self, name: str) -> int:
        return self._named.get(name, self._usual).capacity(name)

    def health(self) -> list[Health]:
        return [health for way in self._ways for health in way.health()]

    def close(self) -> None:
        for way in self._ways:
            way.close()

    def at_once(self, tool: Tool, arguments: Mapping[str, Any]) -> list[Returned] | None:
        return self._named.get(tool.name, self._usual).at_once(tool, arguments)

    async def run(
        self, tool: Tool, arguments: Mapping[str, Any], *, deadline_s: float
    ) -> list[Returned]:
        way = self._named.get(tool.name, self._usual)
        return await way.run(tool, arguments, deadline_s=deadline_s)

    @property
    def _ways(self) -> list[Way]:
        return [*dict.fromkeys([self._usual, *self._named.values()])]
