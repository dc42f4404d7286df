"""Starts the tools of a recipe as a service, and ends them with it.

Invariant: only this machine is listened to unless a token was set by whoever starts it; worker
processes and shared pictures end with the service, also where a signal ends it.

Left out on purpose: choosing a token for others to know.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from saccade.config import Recipe, ServiceConfig
from saccade.errors import RecipeError, SaccadeError
from saccade.tools import Tool, batch_of, is_known, tools_described, tools_named
from saccade.tools.running import InThreads
from saccade.toolserver.controller import Controller, Way

if TYPE_CHECKING:
    from saccade.toolserver.guests import Guests

__all__ = ["TOKEN", "Served", "serve_mcp", "serve_tools", "served"]

TOKEN = "SACCADE_TOKEN"
"""Environment variable with the token of a service, for it and for its callers."""

GRACE_S = 3
"""For calls that run when a service is told to end."""


class Served(NamedTuple):
    """The tools of a recipe and what runs them, which `Controller.close` ends."""

    tools: list[Tool]
    controller: Controller


def served(recipe: Recipe) -> Served:
    """Raises RecipeError for tools that are nowhere, for groups that name other tools, and without
    a token for services; ToolUnavailable for an MCP server that is not there.
    """
    ours = [name for name in recipe.tools if not recipe.mcp or is_known(name)]
    recipe, theirs = (
        recipe.model_copy(update={"tools": tuple(ours)}),
        [name for name in recipe.tools if name not in ours],
    )
    is_here = recipe.service.way == "inprocess"
    tools = tools_named(ours, recipe.backends) if is_here else tools_described(ours)
    way = _WAYS[recipe.service.way](recipe)
    if theirs:
        _need("mcp", "tools of MCP servers")
        from saccade.toolserver.mcp_tools import McpTools
        from saccade.toolserver.mixed import Mixed

        foreign = McpTools(recipe.mcp)
        way = Mixed(way, dict.fromkeys(theirs, foreign))
        try:
            tools += foreign.tools(theirs)
        except SaccadeError:
            way.close()
            raise
    return Served(tools, Controller(way))


def _in_process(recipe: Recipe) -> Way:
    reading = ("reader", "detector", "pointer")
    tools = tools_described([name for name in recipe.tools if is_known(name)])
    return InThreads(
        (t.name for t in tools if any(kind in reading for _, kind in t.needs)),
        batches={t.name: n for t in tools if (n := batch_of(t, recipe.backends)) > 1},
    )


def _workers(recipe: Recipe) -> Way:
    _need("pebble", "service.way workers")
    from saccade.toolserver.workers import Workers

    service = recipe.service
    workers = Workers(
        _groups(service, recipe.tools),
        backends=recipe.backends,
        processes=service.processes,
        memory_mb=service.memory_mb,
        niceness=service.niceness,
        cpus=service.cpus,
    )
    workers.start()
    return workers


def _groups(service: ServiceConfig, tools: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """Groups of the recipe's tools; tools with back ends have one each unless it says otherwise."""
    described = {tool.name: tool for tool in tools_described(tools)}
    named = [name for group in service.groups.values() for name in group]
    if unknown := sorted({*named} - {*described}):
        raise RecipeError(f"service.groups names {unknown[0]!r}, which is none of the tools.")
    left = [tool for name, tool in described.items() if name not in named]
    groups = dict(service.groups) | {tool.name: (tool.name,) for tool in left if tool.needs}
    light = tuple(tool.name for tool in left if not tool.needs)
    if light:
        groups["others" if "others" not in groups else "the others"] = light
    for key in ("processes", "cpus"):
        if unknown := sorted({*getattr(service, key)} - {*groups}):
            raise RecipeError(
                f"service.{key} names the group {unknown[0]!r}. There are: {', '.join(groups)}."
            )
    return groups


def _ray(recipe: Recipe) -> Way:
    if find_spec("ray") is None:
        raise RecipeError("service.way ray needs ray: pip install 'saccade[ray]'.")
    from saccade.toolserver.ray_tools import RayTools

    service = recipe.service
    groups = _groups(service, recipe.tools)
    if unknown := sorted({*service.autoscale_to, *service.gpus} - {*groups}):
        raise RecipeError(
            f"service names the group {unknown[0]!r}. There are: {', '.join(groups)}."
        )
    return RayTools(
        groups,
        backends=recipe.backends,
        replicas=service.processes,
        autoscale_to=service.autoscale_to,
        gpus=service.gpus,
        cpus=service.cpus,
        memory_mb=service.memory_mb,
        address=service.ray_address,
    )


def _remote(recipe: Recipe) -> Way:
    _need("httpx", "service.way remote")
    from saccade.toolserver.remote import Remote

    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise RecipeError(f"service.way remote needs the services' token: set {TOKEN}.")
    return Remote(recipe.service.urls, token=token)


_WAYS: dict[Literal["inprocess", "workers", "ray", "remote"], Callable[[Recipe], Way]] = {
    "inprocess": _in_process,
    "workers": _workers,
    "ray": _ray,
    "remote": _remote,
}


def serve_tools(recipe: Recipe, *, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until the process is told to end. Raises RecipeError for an address that others reach,
    without a token.
    """
    _need("uvicorn", "serving tools")
    from saccade.toolserver.http_service import service

    token = _token(host, say)
    with _ended_by_signals(), _guests(recipe) as (guests, controller):
        say(f"{len(guests.specs)} tools at http://{host}:{port}, described in /openapi.json")
        _run(service(guests, controller, token=token), host=host, port=port)


def serve_mcp(
    recipe: Recipe, *, stdio: bool, host: str, port: int, say: Callable[[str], None]
) -> None:
    """Serve MCP clients: over the standard streams, or over HTTP at /mcp until it is told to end.
    Raises RecipeError as `serve_tools` does.
    """
    _need("mcp", "serving MCP clients")
    from saccade.toolserver.bodies import Bodies, Expected, Room
    from saccade.toolserver.http_service import TokenRequired
    from saccade.toolserver.mcp_service import mcp_server

    token = "" if stdio else _token(host, say)
    with _ended_by_signals(), _guests(recipe) as (guests, _):
        server = mcp_server(guests)
        if stdio:
            _run_stdio(server)
            return
        most = guests.limits.picture_bytes * 4 // 3 + guests.limits.request_bytes
        expected = Expected(
            most,
            f"The message is longer than {most} bytes: send smaller pictures, or raise "
            "service.picture_bytes where the service is started.",
            is_json=True,
            times=5,  # as bytes, as text, as a picture file
        )
        app = server.streamable_http_app(host=host, max_request_body_size=most)
        room = Room(guests.limits.in_flight_bytes)
        app.add_middleware(Bodies, expected=lambda _: expected, room=room)
        app.add_middleware(TokenRequired, token=token)
        say(f"{len(guests.specs)} tools at http://{host}:{port}/mcp")
        _run(app, host=host, port=port)


@contextmanager
def _guests(recipe: Recipe) -> Iterator[tuple[Guests, Controller]]:
    """The tools of a recipe for callers whom nobody knows, ended with all that runs them."""
    from saccade.toolserver.guests import GuestLimits, Guests

    tools, controller = served(recipe)
    try:
        guests = Guests(tools, runner=controller, limits=GuestLimits.of(recipe.service))
        try:
            yield guests, controller
        finally:
            guests.close()
    finally:
        controller.close()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Being told to end, by SIGTERM or SIGINT, is the usual end of a service: what must be ended
    with it is, whatever it was doing, and the process has done well.
    """
    if threading.current_thread() is not threading.main_thread():  # no other one is told
        yield
        return
    ends = (signal.SIGTERM, signal.SIGINT)

    def end(*_: object) -> None:
        for one in ends:  # once is enough: another one would break off what ends
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(0)

    before = {one: signal.signal(one, end) for one in ends}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _need(module: str, what: str) -> None:
    if find_spec(module) is None:
        raise RecipeError(f"{what} needs {module}: pip install 'saccade[serve]'.")


def _token(host: str, say: Callable[[str], None]) -> str:
    """The token that is set, or a new one where nobody but this machine is listened to."""
    token = os.environ.get(TOKEN, "").strip()
    if token:
        return token
    if not _is_loopback(host):
        raise RecipeError(
            f"Others reach {host}: set {TOKEN} to a secret that callers must present, or listen on "
            "127.0.0.1."
        )
    token = secrets.token_urlsafe(24)
    say(f"token for callers, in {TOKEN} or as bearer: {token}")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _run(app: Any, *, host: str, port: int) -> None:
    import uvicorn

    # told to end, it ends what it is at, and sends itself the signal again when it has: see above
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=GRACE_S,
    )


def _run_stdio(server: Any) -> None:
    from mcp.server.stdio import stdio_server

    from saccade.toolserver.own_loop import OwnLoop

    async def run() -> None:
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    # not in this thread: what waits for the next line of its caller hears no signal
    loop = OwnLoop("saccade-stdio")
    loop.wait(run())
    loop.close()
