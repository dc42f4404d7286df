"""Tools that `saccade serve tools` runs elsewhere.

Invariant: a picture is sent to a service once, and again where the service has dropped it. What
does not answer is left out for a while, and the call goes to the next service, until its deadline,
which is told to the service. A service that has too much to do is asked again when it says.

Left out on purpose: finding services; their addresses are given.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from saccade.errors import RecipeError, ToolCrashed, ToolError, ToolUnavailable
from saccade.geometry import Box, Point
from saccade.images import ImageView
from saccade.tools.running import Elsewhere, MissedDeadline, Returned, missed_deadline
from saccade.tools.spec import Tool
from saccade.toolserver.own_loop import OwnLoop
from saccade.toolserver.wire import parts_from_json

__all__ = ["RAW", "Remote"]

RAW = "application/x-rgb"
"""A picture as three bytes for each pixel, row by row; its size is in the query."""
LEFT_OUT_S = 2.0
"""For which a service that did not answer is asked for nothing."""
KNOWN = 4096
"""Pictures of which is remembered that a service has them."""


@dataclass(slots=True)
class RemoteHealth:
    """What is known of a service without asking it."""

    group: str
    """Its address."""
    processes: int = 1
    running: int = 0
    answered: int = 0
    died: int = 0
    """Calls that it did not answer."""
    killed: int = 0
    """Calls that missed their deadline there."""
    last_answer: float | None = None
    """Seconds since the epoch."""
    answers: bool | None = None
    """Whether it did the last time."""
    replaces: bool = False
    """Processes there are not ours to replace."""


@dataclass(eq=False, slots=True)
class _Service:
    """One service, as this process knows it."""

    health: RemoteHealth
    left_out_until: float = 0.0
    versions: dict[str, int] | None = None
    """Of the tools that it has, by name; None where it was not asked yet."""
    known: dict[str, str] = field(default_factory=dict)
    """Names there of pictures, by their keys here."""
    sending: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """Pictures that are on their way there, by key."""


class _Unfit(ToolUnavailable):
    """A service does not take a picture; another one may."""


class _ComeAgain(ToolUnavailable):
    """A service has too much to do."""

    def __init__(self, sentence: str, after: str) -> None:
        super().__init__(sentence)
        self.retry_s = int(after) if after.isdecimal() and len(after) < 3 else 1


class Remote(Elsewhere):
    """Calls of tools at those services that have them. `close` ends its connections."""

    def __init__(self, urls: Sequence[str], *, token: str, at_once: int = 64) -> None:
        """Raises RecipeError without an address. `at_once`: calls of one tool."""
        if not urls:
            raise RecipeError("service.way remote needs service.urls: addresses of tool services.")
        self._services = [_Service(RemoteHealth(url.rstrip("/"))) for url in urls]
        self._turn = itertools.count()
        self._at_once = at_once
        self._client = httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=None)
        self._loop = OwnLoop("saccade-remote")

    def capacity(self, name: str) -> int:
        """Calls of a tool that it takes at the same time."""
        return self._at_once

    def health(self) -> list[RemoteHealth]:
        """Of each service, at once."""
        return [service.health for service in self._services]

    def close(self) -> None:
        """End the connections; the services go on."""
        self._loop.close(self._client.aclose())

    async def run(
        self, tool: Tool, arguments: Mapping[str, Any], *, deadline_s: float
    ) -> list[Returned]:
        """See `tools.running.Runner`."""
        try:
            async with asyncio.timeout(deadline_s):
                return await self._loop.run(self._run(tool, arguments, deadline_s))
        except TimeoutError:
            raise missed_deadline(tool.name, deadline_s) from None

    async def _run(
        self, tool: Tool, arguments: Mapping[str, Any], deadline_s: float
    ) -> list[Returned]:
        problem = f"none has version {tool.spec.version} of it"
        failed = 0
        while failed <= 2 * len(self._services):
            service = self._next(tool)
            if service is None:
                break
            health = service.health
            health.running += 1
            try:
                if service.versions is None:
                    service.versions = await self._versions(service)
                    continue
                found = await self._asked(service, tool, arguments, deadline_s)
            except MissedDeadline:
                health.killed += 1
                raise
            except _ComeAgain as busy:
                service.left_out_until = time.monotonic() + busy.retry_s
                soonest = min(s.left_out_until for s in self._services if _has(s, tool))
                await asyncio.sleep(max(0.0, soonest - time.monotonic()))
            except _Unfit as error:
                failed += 1
                problem = str(error)
            except (httpx.TransportError, ToolUnavailable) as error:
                # whoever can't answer now may be able to in a while, and others may be now
                health.died += 1
                health.answers = False
                service.versions = None  # whatever comes back there may have other tools
                failed += 1
                service.left_out_until = time.monotonic() + LEFT_OUT_S
                problem = str(error) or type(error).__name__
                await asyncio.sleep(0.05)
            else:
                health.answered += 1
                health.answers = True
                health.last_answer = time.time()
                return found
            finally:
                health.running -= 1
        addresses = ", ".join(s.health.group for s in self._services)
        raise ToolUnavailable(
            f"No service ran {tool.name} ({problem}): check those at {addresses}."
        )

    def _next(self, tool: Tool) -> _Service | None:
        """In turn, of those that have the tool or were not asked yet; of those that are left out,
        the one that has been for longest.
        """
        first = next(self._turn) % len(self._services)
        in_turn = [s for s in self._services[first:] + self._services[:first] if _has(s, tool)]
        if not in_turn:
            return None
        now = time.monotonic()
        ready = [s for s in in_turn if s.left_out_until <= now]
        return ready[0] if ready else min(in_turn, key=lambda s: s.left_out_until)

    async def _versions(self, service: _Service) -> dict[str, int]:
        rows = _checked(await self._client.get(f"{service.health.group}/tools"))
        try:
            return {tool["name"]: tool["version"] for tool in rows}
        except (KeyError, TypeError):
            raise ToolUnavailable(
                f"{service.health.group} is no service of tools, it says {str(rows)[:60]}"
            ) from None

    async def _asked(
        self, service: _Service, tool: Tool, arguments: Mapping[str, Any], deadline_s: float
    ) -> list[Returned]:
        """One call there. Raises ToolUnavailable and httpx.TransportError where another service may
        do better.
        """
        views = {v.ref.key: v for v in _views(arguments)}
        for _ in range(3):  # pictures may be dropped there while others are sent
            for view in views.values():
                if view.ref.key not in service.known:
                    await self._sent(service, view)
            names = {key: service.known[key] for key in views}
            response = await self._client.post(
                f"{service.health.group}/tools/{tool.name}",
                params={"deadline_s": deadline_s},
                json={n: _plain(v, names) for n, v in arguments.items() if v is not None},
            )
            if response.status_code != 409:
                break
            for key in views:
                service.known.pop(key, None)
        value = _checked(response)
        there = {name: views[key] for key, name in names.items()}
        try:
            if value["failed"]:
                raise ToolError(" ".join(p["text"] for p in value["parts"] if p["type"] == "text"))
            return await self._returned(service, value, there)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ToolCrashed(
                f"{service.health.group} gave what no tool gives ({type(error).__name__}: {error})."
            ) from error

    async def _returned(
        self, service: _Service, value: dict[str, Any], there: Mapping[str, ImageView]
    ) -> list[Returned]:
        """What the call gave. A picture that is none of ours is fetched."""
        given, new = {}, {}
        for row in value["images"]:
            name = f"img_{row['key'][:16]}"
            if name in there:
                given[row["key"]] = there[name]
            elif "derivation" not in row:
                response = await self._client.get(
                    f"{service.health.group}/pictures/{name}", headers={"Accept": RAW}
                )
                if response.status_code != 200:
                    raise ToolUnavailable(f"{service.health.group} dropped a picture it had made")
                size = (row["width"], row["height"])
                new[row["key"]] = Image.frombytes("RGB", size, response.content)
        return parts_from_json(value, given, new)

    async def _sent(self, service: _Service, view: ImageView) -> None:
        """Waits until the service has the picture; those who want the same one send it once."""
        key = view.ref.key
        sending = service.sending.get(key)
        if sending is None:
            sending = service.sending[key] = asyncio.ensure_future(self._send(service, view))
            sending.add_done_callback(lambda _: service.sending.pop(key, None))
        await asyncio.shield(sending)

    async def _send(self, service: _Service, view: ImageView) -> None:
        pixels = view.pixels
        response = await self._client.post(
            f"{service.health.group}/pictures",
            params={"width": view.width, "height": view.height},
            content=pixels.tobytes(),
            headers={"Content-Type": RAW},
        )
        try:
            name = _checked(response)["image"]
        except (KeyError, TypeError):
            raise ToolUnavailable(f"{service.health.group} took a picture and named none") from None
        while len(service.known) >= KNOWN:
            service.known.pop(next(iter(service.known)))
        service.known[view.ref.key] = name


def _has(service: _Service, tool: Tool) -> bool:
    """Whether it has the tool in this version, as far as is known."""
    return service.versions is None or service.versions.get(tool.name) == tool.spec.version


def _checked(response: httpx.Response) -> Any:
    """The answer as JSON; what the service says of a failure, as the error that it is."""
    try:
        value = response.json()
    except ValueError:
        value = {"error": f"it answered {response.status_code} without JSON"}
    if response.status_code == 200:
        return value
    said = value if isinstance(value, dict) else {}
    sentence = str(said.get("error", f"it answered {response.status_code}"))
    if response.status_code in (429, 503) and "retry-after" in response.headers:
        raise _ComeAgain(sentence, response.headers["retry-after"])
    known = {
        "ToolError": ToolError,
        "ToolCrashed": ToolCrashed,
        "MissedDeadline": MissedDeadline,
        "ImageError": _Unfit,
    }
    raise known.get(str(said.get("kind")), ToolUnavailable)(sentence)


def _views(arguments: Mapping[str, Any]) -> list[ImageView]:
    values = [v for value in arguments.values() for v in _listed(value)]
    return [v for v in values if isinstance(v, ImageView)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _plain(value: Any, names: Mapping[str, str]) -> Any:
    """An argument as any caller writes it: places in pixels, images by name."""
    if isinstance(value, ImageView):
        return names[value.ref.key]
    if isinstance(value, Box):
        return list(value.as_tuple())
    if isinstance(value, Point):
        return [value.x, value.y]
    return [_plain(v, names) for v in value] if isinstance(value, list) else value
