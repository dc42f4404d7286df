import asyncio
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.engines import Engine, Sampling, TurnRequest
from saccade.engines.scripted import END_OF_TURN_ID, ScriptedEngine
from saccade.errors import EngineError
from saccade.types import Message, Segment, Text, Turn


def request(sample: str = "s", *, turns: int = 0, max_tokens: int = 256) -> TurnRequest:
    """The request for turn number `turns` of an episode."""
    messages = [Message("user", (Text("question"),))]
    for number in range(turns):
        messages.append(Message("assistant", (Text(f"turn {number}"),)))
        messages.append(Message("tool", (Text("observation"),)))
    prompt = Segment("prompt", tuple(range(7)))
    sampling = Sampling(max_tokens=max_tokens)
    return TurnRequest(f"{sample}/0", tuple(messages), (prompt,), (0, sample, 0), sampling)


def ask(engine: ScriptedEngine, asked: TurnRequest) -> Turn:
    return asyncio.run(engine.turn(asked))


def test_it_is_an_engine_without_ids_unless_told_otherwise() -> None:
    assert isinstance(ScriptedEngine({}), Engine)
    assert not ScriptedEngine({}).capabilities.ids
    assert ScriptedEngine({}, ids=True).capabilities.logprobs


def test_a_function_answers_each_request_and_all_are_recorded() -> None:
    engine = ScriptedEngine(lambda r: f"{r.seed[1]} has {len(r.messages)} messages")
    first, second = request("a"), request("b", turns=1)
    assert ask(engine, first).text == "a has 1 messages"
    assert ask(engine, second).text == "b has 3 messages"
    engine.release("a/0")
    assert engine.requests == [first, second]
    assert engine.released == ["a/0"]


def test_lines_of_a_sample_follow_its_conversation_and_not_the_order_of_calls() -> None:
    engine = ScriptedEngine({"a": ["one", "two"], "b": ["three", "four"]})
    asked = [request("b", turns=1), request("a", turns=1), request("a"), request("b")]
    texts = [ask(engine, r).text for r in asked]
    assert texts == ["four", "two", "one", "three"]


def test_a_line_may_be_a_whole_turn_or_an_error() -> None:
    turn = Turn("cut", "length", prompt_tokens=3)
    engine = ScriptedEngine({"a": [turn, EngineError("gone")]})
    assert ask(engine, request("a")) is turn
    with pytest.raises(EngineError, match="gone"):
        ask(engine, request("a", turns=1))


def test_a_script_that_ran_out_says_for_which_sample_and_turn() -> None:
    engine = ScriptedEngine({"a": ["only"]})
    with pytest.raises(LookupError, match="1 lines for sample 'a', but turn 2"):
        ask(engine, request("a", turns=1))
    with pytest.raises(LookupError, match="0 lines for sample 'b', but turn 1"):
        ask(engine, request("b"))


def test_delays_of_turns_overlap() -> None:
    engine = ScriptedEngine(lambda _: "x", delay_s=0.2)

    async def all_turns() -> list[Turn]:
        return await asyncio.gather(*(engine.turn(request(str(i))) for i in range(20)))

    start = time.perf_counter()
    turns = asyncio.run(all_turns())
    assert 0.2 <= time.perf_counter() - start < 1.0
    assert {t.seconds for t in turns} == {0.2}


@settings(deadline=None)
@given(st.text(alphabet=st.characters(), max_size=30))
def test_ids_are_the_bytes_of_the_text_with_one_logprob_each(text: str) -> None:
    engine = ScriptedEngine(lambda _: text, ids=True)
    turn = ask(engine, request())
    assert turn.ids is not None
    assert turn.ids[-1] == END_OF_TURN_ID
    assert bytes(turn.ids[:-1]).decode("utf-8", "surrogatepass") == text
    assert turn.logprobs == (0.0,) * len(turn.ids)
    assert (turn.text, turn.finish, turn.policy_version, turn.prompt_tokens) == (text, "stop", 0, 7)


@pytest.mark.parametrize(("max_tokens", "finish"), [(5, "length"), (6, "stop")])
def test_a_turn_with_ids_ends_at_max_tokens(max_tokens: int, finish: str) -> None:
    turn = ask(ScriptedEngine(lambda _: "héll", ids=True), request(max_tokens=max_tokens))
    assert turn.ids is not None
    assert (turn.finish, len(turn.ids)) == (finish, max_tokens)
    assert (turn.ids[-1] == END_OF_TURN_ID) == (finish == "stop")


def test_it_needs_no_torch() -> None:
    code = "import sys, saccade.engines.scripted; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
