import asyncio
import base64
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.engines import Engine, Sampling, TurnRequest
from saccade.engines.api import ApiEngine
from saccade.errors import EngineError, RecipeError
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import ImageView, root_view
from saccade.types import BoxFound, ImageRef, ImageShown, Message, Part, Text, Turn


def completion(
    content: str | None = "hello", *, finish: str | None = "stop", **extra: Any
) -> dict[str, Any]:
    """A chat completion in OpenAI's shape."""
    message = {"role": "assistant", "content": content, **extra}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 41, "completion_tokens": 2, "total_tokens": 43},
    }


class Server(ThreadingHTTPServer):
    """A real endpoint on the loopback; `answer` says what happens to each request."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[Handler, dict[str, Any]], None] = lambda h, _: h.reply(completion())
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.busy = 0
        self.most_busy = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.keys.append(self.headers["Authorization"])
            self.server.paths.append(self.path)
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
        try:
            self.server.answer(self, body)
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def reply(self, body: object, *, status: int = 200, kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "20")
        if self.close_connection:  # said, or the client may send on a connection that is closing
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, message: str) -> None:
        self.reply({"error": {"message": message, "type": "t", "code": None}}, status=status)

    def hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


STORE = ImageStore()


def engine(server: Server, **options: Any) -> ApiEngine:
    defaults: dict[str, Any] = {"base_url": server.url, "store": STORE, "retries": 0}
    return ApiEngine("m", **{**defaults, **options})


def request(*messages: Message, sampling: Sampling = Sampling()) -> TurnRequest:  # noqa: B008
    messages = messages or (user("question"),)
    return TurnRequest("e", messages, (), (0, "s", 0), sampling)


def user(*parts: Part | str) -> Message:
    return Message("user", tuple(Text(p) if isinstance(p, str) else p for p in parts))


def ask(engine: ApiEngine, *requests: TurnRequest) -> list[Turn]:
    """All at once, in one event loop, and the connections closed."""

    async def all_turns() -> list[Turn]:
        try:
            return await asyncio.gather(*(engine.turn(r) for r in requests))
        finally:
            await engine.close()

    return asyncio.run(all_turns())


def failure(engine: ApiEngine, *requests: TurnRequest) -> str:
    with pytest.raises(EngineError) as caught:
        ask(engine, *(requests or (request(),)))
    return str(caught.value)


def noise(width: int, height: int, seed: int = 0) -> ImageView:
    data = bytes((i * 7919 + i // 251 + seed) % 256 for i in range(width * height * 3))
    view = root_view(Image.frombytes("RGB", (width, height), data))
    STORE.add(view)
    return view


def pictures(message: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a message as the endpoint got them."""
    found: list[Image.Image] = []
    for part in message["content"]:
        if part["type"] == "image_url":
            head, _, data = part["image_url"]["url"].partition(",")
            assert head == "data:image/png;base64"
            found.append(Image.open(io.BytesIO(base64.b64decode(data))))
    return found


def observation(view: ImageView) -> tuple[Message, ...]:
    """A conversation with one tool call and its picture."""
    return (
        Message("system", (Text("tools"),)),
        user(ImageShown(view.ref, "img_0"), "question"),
        Message("assistant", (Text("<tool_call>{}</tool_call>"),)),
        Message(
            "tool",
            (
                Text("<tool_response>\nimg_1: "),
                ImageShown(view.ref, "img_1"),
                Text("\n</tool_response>"),
            ),
        ),
    )


# --- what is sent ---------------------------------------------------------------------------------


def test_a_turn_is_asked_for_and_comes_back(server: Server) -> None:
    sampling = Sampling(temperature=0.25, max_tokens=77)
    (turn,) = ask(engine(server), request(sampling=sampling))
    assert (turn.text, turn.finish, turn.ids, turn.prompt_tokens) == ("hello", "stop", None, 41)
    assert turn.seconds > 0
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "question"}],
            "temperature": 0.25,
            "max_tokens": 77,
        }
    ]


def test_the_limit_on_tokens_goes_by_the_name_that_the_endpoint_wants(server: Server) -> None:
    ask(engine(server, limit_name="max_completion_tokens"), request())
    assert server.bodies[0]["max_completion_tokens"] == 256
    assert "max_tokens" not in server.bodies[0]


def test_the_whole_conversation_is_sent_and_an_observation_is_the_users_by_default(
    server: Server,
) -> None:
    api = engine(server)
    ask(api, request(*observation(noise(8, 6))))
    system, question, assistant, followup = server.bodies[0]["messages"]
    assert system == {"role": "system", "content": "tools"}
    assert [p["type"] for p in question["content"]] == ["text", "image_url", "text"]
    assert [question["content"][i].get("text") for i in (0, 2)] == ["img_0: ", "question"]
    assert assistant == {"role": "assistant", "content": "<tool_call>{}</tool_call>"}
    assert followup["role"] == "user"
    texts = [p.get("text") for p in followup["content"]]
    assert texts == ["<tool_response>\nimg_1: ", None, "\n</tool_response>"]
    assert api.observation_form == "user_followup"


def test_natively_an_observation_keeps_the_role_tool_and_its_pictures(server: Server) -> None:
    view = noise(8, 6)
    ask(engine(server, images="native"), request(*observation(view)))
    sent = server.bodies[0]["messages"][-1]
    assert (sent["role"], sent["tool_call_id"]) == ("tool", "call_3")
    assert pictures(sent)[0].tobytes() == view.pixels.tobytes()


def test_auto_keeps_native_where_the_endpoint_takes_it(server: Server) -> None:
    api = engine(server, images="auto")
    assert api.observation_form is None
    ask(api, request(), request(*observation(noise(8, 6))))
    assert api.observation_form == "native"


def test_auto_decides_nothing_from_an_observation_without_a_picture(server: Server) -> None:
    api = engine(server, images="auto")
    ask(api, request(user("question"), Message("tool", (Text("no picture"),))))
    assert server.bodies[0]["messages"][1] == {
        "role": "tool",
        "content": "no picture",
        "tool_call_id": "call_1",
    }
    assert api.observation_form is None


def test_auto_falls_back_once_where_the_endpoint_refuses_the_role_tool(server: Server) -> None:
    def answer(handler: Handler, body: dict[str, Any]) -> None:
        if any(m["role"] == "tool" for m in body["messages"]):
            handler.refuse(400, "messages with role 'tool' must follow 'tool_calls'")
        else:
            handler.reply(completion())

    server.answer = answer
    api = engine(server, images="auto")
    assert ask(api, request(*observation(noise(8, 6))))[0].text == "hello"
    assert api.observation_form == "user_followup"
    ask(api, request(*observation(noise(8, 6))))
    assert [b["messages"][-1]["role"] for b in server.bodies] == ["tool", "user", "user"]


def test_auto_decides_nothing_from_a_request_that_is_refused_in_both_forms(server: Server) -> None:
    server.answer = lambda handler, _: handler.refuse(400, "context length exceeded")
    api = engine(server, images="auto")
    assert "context length exceeded" in failure(api, request(*observation(noise(8, 6))))
    assert api.observation_form is None


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (640, 480)])
def test_pictures_arrive_pixel_for_pixel(server: Server, size: tuple[int, int]) -> None:
    view = noise(*size)
    derived = view.resize(size[0] + 3, size[1] + 1)
    STORE.add(derived)
    shown = [ImageShown(v.ref, f"img_{i}") for i, v in enumerate((view, derived))]
    ask(engine(server), request(user(*shown, "compare")))
    got = pictures(server.bodies[0]["messages"][0])
    assert [g.size for g in got] == [view.pixels.size, derived.pixels.size]
    assert [g.convert("RGB").tobytes() for g in got] == [
        v.pixels.tobytes() for v in (view, derived)
    ]


def test_larger_pictures_are_shrunk_to_the_budget_and_smaller_ones_left_alone(
    server: Server,
) -> None:
    large, small = noise(200, 100), noise(40, 20)
    api = engine(server, max_image_pixels=5000)
    ask(api, request(user(ImageShown(large.ref, "img_0"), ImageShown(small.ref, "img_1"))))
    first, second = pictures(server.bodies[0]["messages"][0])
    assert first.size == api.shown_size(large.ref) == (100, 50)
    assert first.convert("RGB").tobytes() == large.resize(100, 50).pixels.tobytes()
    assert second.tobytes() == small.pixels.tobytes()


sides = st.integers(min_value=1, max_value=20_000)


@settings(deadline=None)
@given(sides, sides, st.integers(min_value=1, max_value=2_000_000))
def test_a_shown_size_is_under_the_budget_and_near_it(width: int, height: int, most: int) -> None:
    api = ApiEngine("m", store=STORE, base_url="http://127.0.0.1:1/v1", max_image_pixels=most)
    shown_width, shown_height = api.shown_size(ImageRef("k", width, height))
    assert 1 <= shown_width <= width
    assert 1 <= shown_height <= height
    assert shown_width * shown_height <= most
    if width * height <= most:
        assert (shown_width, shown_height) == (width, height)
    elif min(shown_width, shown_height) >= 10:
        assert shown_width * shown_height >= 0.8 * most


def test_a_picture_that_many_requests_share_is_encoded_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = noise(64, 64)
    saved: list[str] = []
    save = Image.Image.save

    def counted(self: Image.Image, target: Any, format: str) -> None:
        saved.append(format)
        save(self, target, format=format)

    monkeypatch.setattr(Image.Image, "save", counted)
    ask(engine(server), *[request(user(ImageShown(view.ref, "img_0")))] * 8)
    assert len(server.bodies) == 8
    assert saved == ["PNG"]


def test_boxes_and_masks_are_refused_since_a_dialect_turns_them_into_text(server: Server) -> None:
    found = BoxFound(noise(8, 6).ref, Box(0, 0, 1, 1))
    with pytest.raises(TypeError, match="A BoxFound can't be sent; dialects turn it into text"):
        ask(engine(server), request(user(found)))


TEXTS = [
    "😀",
    "👩🏽‍🚀",
    "שלום, עולם",
    "مرحبا",
    "图表里最高的柱子",
    "\u202eabc\u202c",
    "a\x00b\r\n\t\x85",
    "\ufffe",
    "\ufeffa",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_in_any_script_pass_both_ways_byte_for_byte(server: Server, text: str) -> None:
    server.answer = lambda handler, body: handler.reply(
        json.dumps(completion(body["messages"][0]["content"]), ensure_ascii=False).encode("utf-8")
    )
    (turn,) = ask(engine(server), request(user(text)))
    assert server.bodies[0]["messages"][0]["content"] == text
    assert turn.text == text


def test_half_a_surrogate_pair_is_replaced_in_both_directions(server: Server) -> None:
    server.answer = lambda handler, _: handler.reply(completion("cut \ud83d"))
    (turn,) = ask(engine(server), request(user("cut \ud83d, whole \ud83d\ude00")))
    assert server.bodies[0]["messages"][0]["content"] == "cut \ufffd, whole 😀"
    assert turn.text == "cut \ufffd"


# --- what comes back ------------------------------------------------------------------------------


def test_a_turn_that_ran_out_of_tokens_says_so(server: Server) -> None:
    server.answer = lambda handler, _: handler.reply(completion("cut", finish="length"))
    assert ask(engine(server), request())[0].finish == "length"


def test_no_content_is_an_empty_text_and_a_refusal_is_what_the_model_said(server: Server) -> None:
    server.answer = lambda handler, _: handler.reply(completion(None))
    assert ask(engine(server), request())[0].text == ""
    server.answer = lambda handler, _: handler.reply(completion(None, refusal="I can't."))
    assert ask(engine(server), request())[0].text == "I can't."


def test_a_reply_without_usage_counts_no_tokens(server: Server) -> None:
    body = completion()
    del body["usage"]
    server.answer = lambda handler, _: handler.reply(body)
    assert ask(engine(server), request())[0].prompt_tokens == 0


@pytest.mark.parametrize(
    ("finish", "sentence"),
    [
        ("content_filter", "The endpoint's content filter withheld the answer"),
        ("tool_calls", "ended its turn with finish reason 'tool_calls'"),
        (None, "ended its turn with finish reason None"),
    ],
)
def test_other_ends_of_a_turn_are_errors(server: Server, finish: str | None, sentence: str) -> None:
    server.answer = lambda handler, _: handler.reply(completion("x", finish=finish))
    assert sentence in failure(engine(server))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"choices": [', "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"<html>Bad gateway</html>", "text/html"),
        (b"null", "application/json"),
        (b"{}", "application/json"),
        (b'{"choices": []}', "application/json"),
        (b'{"choices": [{"message": null, "finish_reason": "stop"}]}', "application/json"),
        (b'{"choices": [{"message": {"content": 3}, "finish_reason": "stop"}]}', "text/plain"),
    ],
)
def test_a_body_that_is_no_chat_completion_is_one_sentence(
    server: Server, body: bytes, kind: str
) -> None:
    server.answer = lambda handler, _: handler.reply(body, kind=kind)
    sentence = failure(engine(server, retries=1))
    assert sentence.startswith(f"{server.url} sent no chat completion but ")
    assert len(sentence) < 600
    assert len(server.bodies) == 1


# --- what goes wrong on the way -------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_passes_is_tried_again(server: Server, status: int) -> None:
    def answer(handler: Handler, _: dict[str, Any]) -> None:
        if len(server.bodies) < 3:
            handler.refuse(status, "not now")
        else:
            handler.reply(completion())

    server.answer = answer
    assert ask(engine(server, retries=2), request())[0].text == "hello"
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]


@pytest.mark.parametrize(
    ("status", "tries", "sentence"),
    [
        (500, 3, "failed (status 500: "),
        (429, 3, "still limits the rate after waiting (status 429: "),
        (400, 1, "refused the request (status 400: "),
        (401, 1, "refused the key (status 401: "),
        (404, 1, "does not know m (status 404: "),
    ],
)
def test_a_failure_that_stays_names_status_reason_and_remedy(
    server: Server, status: int, tries: int, sentence: str
) -> None:
    server.answer = lambda handler, _: handler.refuse(status, "because of this")
    said = failure(engine(server, retries=2))
    assert said.startswith(f"{server.url} {sentence}")
    assert "because of this); " in said
    assert said.endswith(".")
    assert len(server.bodies) == tries


def test_a_server_that_never_answers_is_given_up_in_time(server: Server) -> None:
    gone = threading.Event()

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        gone.wait(10)
        handler.hang_up()

    server.answer = answer
    start = time.perf_counter()
    said = failure(engine(server, timeout_s=0.2, retries=1))
    gone.set()
    assert said.startswith(f"{server.url} did not answer within 0.2 s in 2 tries; raise timeout_s")
    assert time.perf_counter() - start < 5
    assert len(server.bodies) == 2


def test_a_server_that_trickles_for_ever_is_given_up_in_time(server: Server) -> None:
    gone = threading.Event()

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not gone.wait(0.05):
            handler.wfile.write(b" ")

    server.answer = answer
    said = failure(engine(server, timeout_s=0.4))
    gone.set()
    assert "did not answer within 0.4 s in 1 try" in said


def test_a_dropped_connection_is_tried_again(server: Server) -> None:
    def answer(handler: Handler, _: dict[str, Any]) -> None:
        if len(server.bodies) == 1:
            handler.hang_up()
        elif len(server.bodies) == 2:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices"')
            handler.hang_up()
        else:
            handler.reply(completion())

    server.answer = answer
    assert ask(engine(server, retries=2), request())[0].text == "hello"
    assert len(server.bodies) == 3


def test_a_connection_that_always_drops_is_one_sentence(server: Server) -> None:
    server.answer = lambda handler, _: handler.hang_up()
    said = failure(engine(server))
    assert said.startswith(f"The connection to {server.url} failed in 1 try (")
    assert said.endswith("); check base_url and that the server runs.")


def test_an_endpoint_that_nobody_serves_is_one_sentence() -> None:
    with Server() as gone:
        url = gone.url
    api = ApiEngine("m", store=STORE, base_url=url, retries=0)
    assert failure(api).startswith(f"The connection to {url} failed in 1 try (")


def test_one_failed_turn_leaves_the_others_alone(server: Server) -> None:
    def answer(handler: Handler, body: dict[str, Any]) -> None:
        if body["messages"][0]["content"] == "bad":
            handler.refuse(400, "no")
        else:
            handler.reply(completion())

    server.answer = answer
    api = engine(server, concurrency=2)

    async def both() -> list[Turn | BaseException]:
        turns = (api.turn(request(user(text))) for text in ("bad", "good", "bad", "good", "bad"))
        try:
            return await asyncio.gather(*turns, return_exceptions=True)
        finally:
            await api.close()

    results = asyncio.run(both())
    assert [isinstance(r, Turn) for r in results] == [False, True, False, True, False]


def test_never_more_requests_are_under_way_than_allowed(server: Server) -> None:
    def answer(handler: Handler, _: dict[str, Any]) -> None:
        time.sleep(0.05)
        handler.reply(completion())

    server.answer = answer
    turns = ask(engine(server, concurrency=3), *[request()] * 12)
    assert len(turns) == 12
    assert server.most_busy == 3


def test_an_engine_serves_one_event_loop_after_another(server: Server) -> None:
    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.close_connection = True
        handler.reply(completion())

    server.answer = answer
    api = engine(server, concurrency=1)

    async def turns() -> int:
        return len(await asyncio.gather(*(api.turn(request()) for _ in range(3))))

    assert [asyncio.run(turns()), asyncio.run(turns())] == [3, 3]


# --- keys and settings ----------------------------------------------------------------------------


def test_the_key_comes_from_the_argument_or_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(engine(server), request())
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment\n")
    ask(engine(server), request())
    ask(engine(server, api_key="from-argument"), request())
    assert server.keys == ["Bearer none", "Bearer from-environment", "Bearer from-argument"]


def test_a_key_that_a_server_quotes_back_is_not_repeated(server: Server) -> None:
    server.answer = lambda handler, _: handler.refuse(401, "Incorrect API key: top-secret")
    with pytest.raises(EngineError) as caught:
        ask(engine(server, api_key="top-secret"), request())
    assert "Incorrect API key: ***" in str(caught.value)
    assert "top-secret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"base_url": "localhost:8000"}, "base_url must start with http:// or https://, got"),
        ({"base_url": None}, "OpenAI's endpoint needs a key: set OPENAI_API_KEY"),
        ({"api_key": "“quoted”"}, "The API key holds characters that no key has"),
        ({"max_image_pixels": 0}, "max_image_pixels must be at least 1, got 0."),
        ({"timeout_s": 0}, "timeout_s must be more than 0 and finite, got 0."),
        ({"retries": -1}, "retries must be at least 0, got -1."),
        ({"concurrency": 0}, "concurrency must be 1 to 1000, got 0."),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(
    server: Server, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        engine(server, **options)
    assert str(caught.value).startswith(sentence)


def test_it_is_an_engine_that_promises_no_ids_and_has_nothing_to_release(server: Server) -> None:
    api = engine(server)
    assert isinstance(api, Engine)
    assert not api.capabilities.ids
    assert not api.capabilities.reproducible
    api.release("e")


def test_neither_import_nor_construction_loads_the_client_or_torch() -> None:
    code = """
import sys
from saccade.engines.api import ApiEngine
from saccade.image_store import ImageStore
ApiEngine("m", store=ImageStore(), base_url="http://127.0.0.1:1/v1")
sys.exit("openai" in sys.modules or "torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
