"""Any OpenAI-compatible chat-completions endpoint as an engine.

Invariant: the whole conversation goes out each time, and what goes out is what the messages say:
texts byte for byte, pictures as lossless PNG under one pixel budget, every picture after its name.
Whatever the endpoint does wrong is an `EngineError` of one sentence, never a turn.

Left out on purpose: ids and log-probabilities, streaming, native tool calls (our dialects write
calls as text), and retries of our own: the official client waits and tries again on status 408,
409, 429 and 5xx, on lost connections and on timeouts. We read one environment variable, the key.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import math
import os
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from pydantic import BaseModel, Field, ValidationError

from saccade.engines import Capabilities, TurnRequest
from saccade.errors import EngineError, RecipeError
from saccade.image_store import ImageStore
from saccade.types import ImageRef, ImageShown, Message, Text, Turn

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

__all__ = ["ApiEngine", "ObservationForm"]

ObservationForm = Literal["native", "user_followup"]
"""How a tool's message is sent: with the role `tool`, or as a message of the user."""

_log = logging.getLogger(__name__)

_OPENAI = "https://api.openai.com/v1"
_CACHE_BYTES = 64 * 2**20
_LONGEST_WAIT_S = 120.0  # the client follows a Retry-After header up to this many seconds
_Json = dict[str, Any]


class ApiEngine:
    """Answers turns through an endpoint, with a bound on the requests that are under way.

    Args:
        model: name of the model, as the endpoint knows it.
        base_url: endpoint up to `/v1`; None: OpenAI's.
        api_key: None: `OPENAI_API_KEY`. Needed for OpenAI's endpoint only.
        store: where the pictures of the conversation are.
        images: how observations are sent. `user_followup` works everywhere; `native` keeps the
            role `tool`, pictures included, which vLLM takes and OpenAI does not; `auto` tries
            `native` and falls back when the endpoint refuses it. Serve a model as it was trained.
        max_image_pixels: larger pictures are shrunk to this many pixels; None: sent as they are.
        timeout_s: seconds for one try.
        retries: further tries after a failure that may pass.
        concurrency: requests under way at the same time, at most 1000.
        limit_name: field for the limit on tokens; OpenAI's reasoning models want
            `max_completion_tokens`.

    Raises RecipeError where these can't work.
    """

    def __init__(
        self,
        model: str,
        *,
        store: ImageStore,
        base_url: str | None = None,
        api_key: str | None = None,
        images: Literal["auto", "native", "user_followup"] = "user_followup",
        max_image_pixels: int | None = None,
        timeout_s: float = 120.0,
        retries: int = 4,
        concurrency: int = 16,
        limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    ) -> None:
        key = (api_key or os.environ.get("OPENAI_API_KEY", "")).strip()
        _check(base_url, key, max_image_pixels, timeout_s, retries, concurrency)
        self._model = model
        self._base_url = base_url or _OPENAI
        self._key = key
        self._form: ObservationForm | None = None if images == "auto" else images
        self._pictures = _Pictures(store, max_image_pixels)
        self._timeout_s = timeout_s
        self._retries = retries
        self._concurrency = concurrency
        self._limit_name = limit_name
        self._session: _Session | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ids=False, logprobs=False, images=True, reproducible=False)

    @property
    def observation_form(self) -> ObservationForm | None:
        """How observations are sent; None as long as `auto` has not found out."""
        return self._form

    def shown_size(self, image: ImageRef) -> tuple[int, int]:
        """Width and height at which the model is shown an image, in pixels."""
        return self._pictures.size(image)

    async def turn(self, request: TurnRequest) -> Turn:
        """The endpoint's answer. Raises EngineError where there is none that can be used."""
        session = self._connect()
        async with session.gate:
            start = time.perf_counter()
            reply = await self._answer(session.client, request)
            seconds = time.perf_counter() - start
        return _turn(reply, seconds)

    def release(self, episode: str) -> None:
        """Nothing to do: the endpoint is sent the whole conversation each time."""

    async def close(self) -> None:
        """Close the connections; a later turn opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.client.close()

    def _connect(self) -> _Session:
        """The client of the running event loop; loops can't share connections and locks."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.loop is not loop:
            from openai import AsyncOpenAI

            client = AsyncOpenAI(
                api_key=self._key or "none",
                base_url=self._base_url,
                timeout=self._timeout_s,
                max_retries=self._retries,
            )
            self._session = _Session(loop, client, asyncio.Semaphore(self._concurrency))
        return self._session

    async def _answer(self, client: AsyncOpenAI, request: TurnRequest) -> _Reply:
        observations = [m for m in request.messages if m.role == "tool"]
        if self._form is not None or not observations:
            return await self._post(client, request, self._form or "user_followup")
        try:
            reply = await self._post(client, request, "native")
        except _Refused as refused:
            reply = await self._post(client, request, "user_followup")
            self._settle("user_followup", f"the endpoint refused the role tool ({refused})")
        else:
            if any(m.images for m in observations):
                self._settle("native", "the endpoint takes pictures in the role tool")
        return reply

    def _settle(self, form: ObservationForm, why: str) -> None:
        if self._form is None:
            self._form = form
            _log.info("Observations are sent as %s: %s", form, why)

    async def _post(
        self, client: AsyncOpenAI, request: TurnRequest, form: ObservationForm
    ) -> _Reply:
        import openai

        messages = [
            await self._message(message, number, form)
            for number, message in enumerate(request.messages)
        ]
        # timeout_s bounds each wait for bytes; the deadline bounds an answer that trickles for ever
        deadline_s = (self._retries + 1) * self._timeout_s + self._retries * _LONGEST_WAIT_S
        tries = f"{self._retries + 1} {'try' if self._retries == 0 else 'tries'}"
        try:
            async with asyncio.timeout(deadline_s):
                response = await client.chat.completions.with_raw_response.create(
                    model=self._model,
                    messages=cast("Any", messages),
                    temperature=request.sampling.temperature,
                    extra_body={self._limit_name: request.sampling.max_tokens},
                )
        except (openai.APITimeoutError, TimeoutError):
            raise EngineError(
                f"{self._base_url} did not answer within {self._timeout_s:g} s in {tries}; "
                "raise timeout_s or lower concurrency."
            ) from None
        except openai.APIConnectionError as error:
            raise EngineError(
                f"The connection to {self._base_url} failed in {tries} "
                f"({self._excerpt(str(error.__cause__ or error))}); "
                "check base_url and that the server runs."
            ) from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        return self._read(response.content)

    def _refusal(self, error: APIStatusError) -> EngineError:
        """The sentence for a status, without the key, which a server may quote back."""
        status = error.status_code
        said = f"status {status}: {self._excerpt(error.message)}"
        if status in (400, 413, 422):
            return _Refused(
                f"{self._base_url} refused the request ({said}); check the length of the context, "
                "the number and size of pictures, and how observations are sent (images)."
            )
        if status in (401, 403):
            return EngineError(
                f"{self._base_url} refused the key ({said}); set OPENAI_API_KEY to one that may "
                f"use {self._model}."
            )
        if status == 404:
            return EngineError(
                f"{self._base_url} does not know {self._model} ({said}); check model and base_url."
            )
        if status == 429:
            return EngineError(
                f"{self._base_url} still limits the rate after waiting ({said}); "
                "lower concurrency, raise retries, or check the quota."
            )
        return EngineError(
            f"{self._base_url} failed ({said}); look at the server's log and run the same command "
            "again later."
        )

    def _read(self, body: bytes) -> _Reply:
        try:
            return _Reply.model_validate(json.loads(body))
        except (ValidationError, ValueError, RecursionError):
            excerpt = self._excerpt(body[:1000].decode("utf-8", "replace"))
            raise EngineError(
                f"{self._base_url} sent no chat completion but {excerpt!r}; check that base_url is "
                "an OpenAI-compatible endpoint."
            ) from None

    def _excerpt(self, text: str) -> str:
        text = text.replace(self._key, "***") if self._key else text
        line = " ".join(text.split()).rstrip(".")
        return line if len(line) <= 300 else f"{line[:297]}..."

    async def _message(self, message: Message, number: int, form: ObservationForm) -> _Json:
        """A message as endpoints take it: a text, or a list of parts where there are pictures."""
        content: list[_Json] = []
        before = ""
        for part in message.parts:
            if isinstance(part, Text):
                before = part.text
                content.append({"type": "text", "text": _sendable(part.text)})
            elif isinstance(part, ImageShown):
                if not before.rstrip().endswith(f"{part.name}:"):
                    content.append({"type": "text", "text": _sendable(f"{part.name}: ")})
                before = ""
                url = await self._pictures.url(part.image)
                content.append({"type": "image_url", "image_url": {"url": url}})
            else:
                raise TypeError(
                    f"A {type(part).__name__} can't be sent; dialects turn it into text."
                )
        role: str = message.role
        if role == "tool" and form == "user_followup":
            role = "user"
        found: _Json = {"role": role, "content": content}
        if not message.images:
            found["content"] = "".join(part["text"] for part in content)
        if role == "tool":
            found["tool_call_id"] = f"call_{number}"
        return found


class _Session(NamedTuple):
    loop: asyncio.AbstractEventLoop
    client: AsyncOpenAI
    gate: asyncio.Semaphore


class _Refused(EngineError):
    """The endpoint understood the request and does not take it in this form."""


def _check(
    base_url: str | None,
    key: str,
    max_image_pixels: int | None,
    timeout_s: float,
    retries: int,
    concurrency: int,
) -> None:
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise RecipeError(f"base_url must start with http:// or https://, got {base_url!r}.")
    if not key and base_url is None:
        raise RecipeError("OpenAI's endpoint needs a key: set OPENAI_API_KEY, or give base_url.")
    if not key.isascii():
        raise RecipeError("The API key holds characters that no key has: copy it again.")
    if max_image_pixels is not None and max_image_pixels < 1:
        raise RecipeError(f"max_image_pixels must be at least 1, got {max_image_pixels}.")
    if not 0 < timeout_s < math.inf:
        raise RecipeError(f"timeout_s must be more than 0 and finite, got {timeout_s:g}.")
    if retries < 0:
        raise RecipeError(f"retries must be at least 0, got {retries}.")
    if not 1 <= concurrency <= 1000:
        raise RecipeError(f"concurrency must be 1 to 1000, got {concurrency}.")


# --- what comes back ------------------------------------------------------------------------------


class _ReplyMessage(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _ReplyMessage
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None


class _Reply(BaseModel):
    """The part of a chat completion that we use; the client does not check it, so we do."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


_FINISHES: dict[str | None, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}


def _turn(reply: _Reply, seconds: float) -> Turn:
    choice = reply.choices[0]
    finish = choice.finish_reason
    if finish == "content_filter":
        raise EngineError(
            "The endpoint's content filter withheld the answer (finish reason content_filter); "
            "use an endpoint without one, or leave the sample out."
        )
    if finish not in _FINISHES:
        raise EngineError(
            f"The endpoint ended its turn with finish reason {finish!r} instead of stop or length; "
            "switch off the server's own parsing of tool calls."
        )
    text = choice.message.content or choice.message.refusal or ""
    usage = reply.usage
    return Turn(
        _sendable(text),
        _FINISHES[finish],
        prompt_tokens=(usage.prompt_tokens or 0) if usage else 0,
        seconds=seconds,
    )


def _sendable(text: str) -> str:
    """The text with lone surrogates replaced: JSON may carry them, UTF-8 can't."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# --- pictures -------------------------------------------------------------------------------------


class _Pictures:
    """Images as PNG data URLs, each encoded once while it is in use; safe from several threads."""

    def __init__(self, store: ImageStore, max_pixels: int | None) -> None:
        self._store = store
        self._max_pixels = max_pixels
        self._lock = threading.Lock()
        self._urls: OrderedDict[str, str] = OrderedDict()  # least recently used first
        self._bytes = 0

    def size(self, image: ImageRef) -> tuple[int, int]:
        """Width and height under the budget; the shape is kept as far as whole pixels allow."""
        width, height, most = image.width, image.height, self._max_pixels
        if most is None or width * height <= most:
            return width, height
        scale = math.sqrt(most / (width * height))
        height = min(max(1, math.floor(height * scale)), most)
        return min(max(1, math.floor(width * scale)), most // height), height

    async def url(self, image: ImageRef) -> str:
        found = self._urls.get(image.key)
        return await asyncio.to_thread(self._made, image) if found is None else found

    def _made(self, image: ImageRef) -> str:
        with self._lock:  # so that a group's common picture is encoded by the first that needs it
            url = self._urls.pop(image.key, None)
            if url is None:
                url = self._encode(image)
                self._bytes += len(url)
            self._urls[image.key] = url
            while self._bytes > _CACHE_BYTES and len(self._urls) > 1:
                _, gone = self._urls.popitem(last=False)
                self._bytes -= len(gone)
            return url

    def _encode(self, image: ImageRef) -> str:
        view, size = self._store.view(image), self.size(image)
        if size != (image.width, image.height):
            view = view.resize(*size)
        buffer = io.BytesIO()
        view.pixels.save(buffer, format="PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
