"""Tools of foreign MCP servers, used as our own are.

Invariant: what such a tool takes is what its schema says, in the kinds of argument that a model can
write here; a tool that needs another kind is refused by name. A picture that comes back is a root:
nobody knows how it was made of what was sent.

Left out on purpose: places in foreign arguments and answers, whose frame no schema tells, and
servers that ask back.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from PIL import Image

from saccade.config import McpConfig
from saccade.errors import ImageError, RecipeError, ToolCrashed, ToolError, ToolUnavailable
from saccade.images import MAX_OUTPUT_PIXELS, ImageView, root_view
from saccade.picture_files import load_image
from saccade.tools.running import Elsewhere, Returned, missed_deadline
from saccade.tools.spec import Between, Kind, Parameter, Tool
from saccade.toolserver.own_loop import OwnLoop
from saccade.types import Text, ToolSpec

__all__ = ["McpTools"]

CONNECT_S = 30.0
"""For a server to start, and for each page of its list of tools."""
PING_S = 5.0
"""For a word from a server of which a call was late; one that has none to say is started again."""
MOST_CHARACTERS = 20_000
"""Of text in an answer; what is beyond this and the next three is left out, with a note."""
MOST_TEXTS = 60
MOST_PICTURES = 8
MOST_PIXELS = MAX_OUTPUT_PIXELS
"""Of all pictures of an answer together."""
MOST_SAID = 1_000
"""Characters of an error, or of the description of a tool; the rest is cut, with a note."""
MOST_PAGES = 100
"""Of a server's list of tools."""
_KINDS: dict[str, Kind] = {
    "string": "text",
    "number": "number",
    "integer": "integer",
    "boolean": "boolean",
}


class McpTools(Elsewhere):
    """Connections to servers, and the tools that they offer. `close` ends them."""

    def __init__(self, servers: Mapping[str, McpConfig]) -> None:
        self._loop = OwnLoop("saccade-mcp")
        self._servers = {name: _Server(name, config) for name, config in servers.items()}
        self._of: dict[str, _Server] = {}

    def tools(self, names: Sequence[str]) -> list[Tool]:
        """The named ones, with their schemas. Raises RecipeError where none or several servers have
        one, or a model could not write what it takes; ToolUnavailable where a server is not there.
        """
        offered: dict[str, list[tuple[_Server, Any]]] = {}
        for server in self._servers.values():
            for found in self._loop.wait(server.listed()):
                offered.setdefault(found.name, []).append((server, found))
        tools = []
        for name in names:
            if len(offered.get(name, ())) != 1:
                known = ", ".join(sorted(offered))
                count = "No" if name not in offered else "More than one"
                raise RecipeError(f"{count} MCP server offers {name!r}. They offer: {known}.")
            [(server, found)] = offered[name]
            tools.append(_tool(found, server.config.images.get(name, ())))
            self._of[name] = server
        return tools

    def capacity(self, name: str) -> int:
        """Calls of a tool that it takes at the same time."""
        return 16

    def health(self) -> Sequence[NoReturn]:
        """Nothing is known of foreign workers."""
        return ()

    def close(self) -> None:
        """End the connections, and the servers that were started for them."""
        self._loop.close()

    async def run(
        self, tool: Tool, arguments: Mapping[str, Any], *, deadline_s: float
    ) -> list[Returned]:
        """See `tools.running.Runner`."""
        server = self._of[tool.name]
        given = await asyncio.to_thread(_plain, dict(arguments), server.config.pictures_as)
        try:
            async with asyncio.timeout(deadline_s):
                result = await self._loop.run(server.called(tool.name, given))
        except TimeoutError:
            self._loop.begin(server.look())
            raise missed_deadline(tool.name, deadline_s) from None
        if result.is_error:
            said = _cut(" ".join(_texts(result)), MOST_SAID)
            raise ToolError(said or f"{tool.name} failed and did not say why.")
        return await asyncio.to_thread(_returned, tool.name, result)


class _Link(NamedTuple):
    """A connection: the task that opened it and must close it, and the client once it is there."""

    task: asyncio.Task[None]
    ready: asyncio.Future[Any]


@dataclass(eq=False)
class _Server:
    """One server; everything but the config belongs to the loop of the connections."""

    name: str
    config: McpConfig
    link: _Link | None = None

    async def listed(self) -> list[Any]:
        found: list[Any] = []
        cursor = None
        for _ in range(MOST_PAGES):
            page = await self._asked("list_tools", functools.partial(self._page, cursor=cursor))
            found += page.tools
            cursor = page.next_cursor
            if cursor is None or len(found) >= 1_000:
                break
        return found

    async def _page(self, client: Any, *, cursor: str | None) -> Any:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await client.list_tools(cursor=cursor)
        except TimeoutError:
            raise ToolUnavailable(
                f"MCP server {self.name} did not tell its tools in {CONNECT_S:g} s: check that it "
                "works."
            ) from None

    async def called(self, name: str, arguments: dict[str, Any]) -> Any:
        return await self._asked(name, lambda client: client.call_tool(name, arguments))

    async def look(self) -> None:
        """After a late call: a server that does not even answer a ping hangs, and the next call is
        to find a new one.
        """
        link = self.link
        if link is None or not link.ready.done():
            return
        # the boundary to another program: whatever is wrong with the connection, it is of no use
        try:
            async with asyncio.timeout(PING_S):
                await link.ready.result().send_ping()
        except Exception:
            self._forget(link)

    async def _asked(self, what: str, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        """What the server answers; asked once more where the connection is gone."""
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        problem = ""
        for _ in range(2):
            link = self._linked()
            client = await self._client(link)
            try:
                return await ask(client)
            except MCPError as error:
                if error.code != CONNECTION_CLOSED:
                    said = _cut(str(error), MOST_SAID)
                    raise ToolCrashed(f"MCP server {self.name} on {what}: {said}.") from error
                problem = _cut(str(error), MOST_SAID)
            except (OSError, EOFError) as error:
                problem = str(error) or type(error).__name__
            # the boundary to another program: so the client tells of answers that are none
            except (ValueError, RuntimeError) as error:
                said = _cut(f"{type(error).__name__}: {error}", MOST_SAID)
                raise ToolCrashed(
                    f"MCP server {self.name} on {what} gave what it may not give: {said}."
                ) from error
            self._forget(link)
        raise ToolUnavailable(f"MCP server {self.name} is gone: {problem}.")

    def _linked(self) -> _Link:
        """The connection, begun where there is none."""
        if self.link is None or self.link.task.done():
            ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self.link = _Link(asyncio.ensure_future(self._connection(ready)), ready)
        return self.link

    async def _client(self, link: _Link) -> Any:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await asyncio.shield(link.ready)
        except TimeoutError:
            self._forget(link)
            raise ToolUnavailable(
                f"MCP server {self.name} did not answer in {CONNECT_S:g} s: check that it runs."
            ) from None

    def _forget(self, link: _Link) -> None:
        """End a connection that failed. Of many calls that it failed each says so, and none may end
        the next one, which another has begun.
        """
        link.task.cancel()
        if self.link is link:
            self.link = None

    async def _connection(self, ready: asyncio.Future[Any]) -> None:
        from mcp import Client

        why = "its connection was ended"
        try:
            async with Client(self._place()) as client:
                ready.set_result(client)
                await asyncio.Event().wait()
        # the boundary to another program: whatever its connection raises, the waiting ones are told
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        finally:
            if not ready.done():
                ready.set_exception(
                    ToolUnavailable(f"MCP server {self.name} can't be reached: {why}.")
                )
                ready.exception()  # seen, even where nobody waits any more

    def _place(self) -> Any:
        from mcp import StdioServerParameters

        if self.config.command:
            program, *rest = self.config.command
            return StdioServerParameters(command=program, args=rest)
        if self.config.token is None:
            return self.config.url
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        token = os.environ.get(self.config.token)
        if not token:
            raise RecipeError(f"mcp.{self.name}.token: set {self.config.token} to its token.")
        assert self.config.url is not None
        http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=None)
        return streamable_http_client(self.config.url, http_client=http)


# --- schemas --------------------------------------------------------------------------------------


def _tool(found: Any, images: Sequence[str]) -> Tool:
    """Ours, of what a server says of its own. Raises RecipeError where a model can't write it."""
    schema = found.input_schema
    required = set(schema.get("required", ()))
    parameters = []
    for name, value in schema.get("properties", {}).items():
        parameter = _parameter(name, value, required=name in required, is_image=name in images)
        if parameter is not None:
            parameters.append(parameter)
        elif name in required:
            raise RecipeError(
                f"MCP tool {found.name!r} needs {name!r}, which is of a kind that no model can "
                f"write here: {str(value)[:80]}."
            )
    if unknown := sorted(set(images) - {p.name for p in parameters}):
        raise RecipeError(f"MCP tool {found.name!r} has no argument {unknown[0]!r} for a picture.")
    spec = ToolSpec(
        name=found.name,
        description=_cut((found.description or found.name).strip().split("\n", 1)[0], MOST_SAID),
        schema={
            "type": "object",
            "properties": {p.name: p.schema for p in parameters},
            "required": [p.name for p in parameters if p.required],
            "additionalProperties": False,
        },
    )

    def elsewhere(**_: Any) -> NoReturn:
        raise ToolUnavailable(f"{found.name} runs at an MCP server only.")

    return Tool(elsewhere, spec, tuple(parameters))


def _parameter(
    name: str, schema: Mapping[str, Any], *, required: bool, is_image: bool
) -> Parameter | None:
    """An argument of one of our kinds, or null where it may be; None for any other."""
    schema, nullable = _without_null(schema)
    many = schema.get("type") == "array"
    one = schema.get("items", {}) if many else schema
    choices = tuple(one.get("enum", ()))
    kind = "image" if is_image else "choice" if choices else _KINDS.get(str(one.get("type")))
    if kind is None or not all(isinstance(c, str) for c in choices):
        return None
    between = None
    if "minimum" in one and "maximum" in one:
        between = Between(one["minimum"], one["maximum"])
    return Parameter(
        name=name,
        kind=kind,
        description=_cut(str(schema.get("description") or schema.get("title") or name), MOST_SAID),
        many=many,
        required=required,
        nullable=nullable,
        choices=choices,
        between=between,
    )


def _without_null(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The schema of a value that is not null, and whether null may stand in its place."""
    for key in ("anyOf", "oneOf"):
        kinds = schema.get(key, ())
        others = [kind for kind in kinds if kind.get("type") != "null"]
        if len(others) == 1:
            rest = {name: value for name, value in schema.items() if name != key}
            return rest | others[0], len(kinds) > 1
    kinds = schema.get("type")
    if isinstance(kinds, list) and len(others := [k for k in kinds if k != "null"]) == 1:
        choices = [c for c in schema.get("enum", ()) if c is not None]
        return {**schema, "type": others[0], "enum": choices}, len(kinds) > 1
    return schema, False


# --- what travels ---------------------------------------------------------------------------------


def _plain(value: Any, pictures_as: str) -> Any:
    if isinstance(value, ImageView):
        file = io.BytesIO()
        value.pixels.save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode("ascii")
        return data if pictures_as == "base64" else f"data:image/png;base64,{data}"
    if isinstance(value, list):
        return [_plain(v, pictures_as) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v, pictures_as) for k, v in value.items() if v is not None}
    return value


def _texts(result: Any) -> list[str]:
    return [content.text for content in result.content if content.type == "text"]


def _cut(text: str, most: int) -> str:
    """The text, or what there is room for of it, with a note."""
    rest = len(text) - most
    return text if rest <= 0 else f"{text[:most]} ... (cut: {rest} more characters)"


def _returned(name: str, result: Any) -> list[Returned]:
    """The answer in its order, as far as there is room for it; how much was left out is said."""
    parts: list[Returned] = []
    texts, characters = MOST_TEXTS, MOST_CHARACTERS
    pictures, pixels = MOST_PICTURES, MOST_PIXELS
    more_texts = more_pictures = 0
    for content in result.content:
        if content.type == "text" and texts and characters:
            parts.append(Text(_cut(content.text, characters)))
            texts, characters = texts - 1, max(0, characters - len(content.text))
        elif content.type == "text":
            more_texts += 1
        elif content.type == "image" and pictures:
            picture = _picture(name, content.data)
            pictures, pixels = pictures - 1, pixels - picture.width * picture.height
            if pixels >= 0:
                parts.append(root_view(picture))
            else:  # nor are the next ones read
                pictures, more_pictures = 0, more_pictures + 1
        elif content.type == "image":
            more_pictures += 1
    counts = ((more_texts, "texts"), (more_pictures, "pictures"))
    if more := " and ".join(f"{count} more {kind}" for count, kind in counts if count):
        parts.append(Text(f"{more} were left out: ask for less."))
    return parts or [Text(f"{name} found nothing.")]


def _picture(name: str, data: str) -> Image.Image:
    try:
        return load_image(base64.b64decode(data, validate=True))
    except (ValueError, ImageError) as error:  # also of text that is not even ASCII
        raise ToolCrashed(f"MCP tool {name} gave a picture that is none: {error}") from None
