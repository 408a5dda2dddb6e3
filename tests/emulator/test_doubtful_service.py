"""What the service might do to a history, a prompt, an answer or a status, and nobody knows whether it does."""

from __future__ import annotations

import itertools
import json
import threading

import httpx
import pytest

from airflow_provider_llamachat.testing import INDEX_FILINGS, EmulatorControl, Fault, LlamaCloudEmulator
from tests.emulator.conftest import WHOLE, Api, Clock, events, eventually

QUESTION = "What was the revenue in Q3?"
FOREIGN = ["user_input", "text", "stop"]


def _prompts(api: Api, session_id: str) -> list[str]:
    return [event["content"] for event in api.history(session_id) if event["type"] == "user_input"]


@pytest.mark.parametrize("records", ["start", "end"])
def test_the_history_lags(records: str, api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.update_settings(history_lag=60.0, records=records)
    session_id = api.bound()
    assert events(api.ask(session_id).text)[-1][1]["type"] == "stop"
    early = api.http.get(f"/api/v1/chat/{session_id}").json()
    assert (early["events"], early["job_metadata"], early["generated_title"]) == ([], None, None)
    assert api.http.get(f"/api/v1/chat/{session_id}/summary").json()["job_metadata"] is None
    assert emulator.completed(session_id) == 1
    assert [event["type"] for event in emulator.sessions[session_id]["events"]] == WHOLE
    clock.forward()
    assert api.types(session_id) == WHOLE
    late = api.http.get(f"/api/v1/chat/{session_id}/summary").json()
    assert (late["job_metadata"]["turns"], late["generated_title"]) == (1, QUESTION)
    # Only the first turn's metadata can be missing.
    api.ask(session_id, "And in Q2?")
    full = api.http.get(f"/api/v1/chat/{session_id}").json()
    assert len(full["events"]) == len(WHOLE)
    assert full["job_metadata"]["total_input_tokens"] == emulator.turns[1].input_tokens
    assert api.http.delete(f"/api/v1/chat/{session_id}").status_code == 204


def test_events_of_a_running_turn_lag_one_by_one(api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.update_settings(history_lag=600.0, turn_latency=80.0, events_per_turn=8)
    session_id = api.bound()
    thread = threading.Thread(target=api.ask, args=(session_id,))
    thread.start()
    while emulator.completed(session_id) == 0:
        clock.forward(10.0)
    thread.join(60)
    clock.forward(510.0)
    seen = [api.types(session_id)]
    while seen[-1] != WHOLE:
        clock.forward(5.0)
        seen.append(api.types(session_id))
    assert seen[0] in ([], ["user_input"])
    assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(seen))
    assert len({len(kinds) for kinds in seen}) > 3


def test_the_history_catches_up_when_the_lag_is_lowered(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.history_lag = 3600.0
    session_id = api.bound()
    api.ask(session_id)
    assert api.history(session_id) == []
    emulator.settings.history_lag = 0.0
    assert api.types(session_id) == WHOLE


HOSTILE = " <B>\"\uff21\" & 'e\u0301'</B>\u200b\x07\n"
FORMS = {
    "verbatim": HOSTILE,
    "trimmed": "<B>\"\uff21\" & 'e\u0301'</B>\u200b\x07",
    "nfc": " <B>\"\uff21\" & '\xe9'</B>\u200b\x07\n",
    "nfkc": " <B>\"A\" & '\xe9'</B>\u200b\x07\n",
    "html": " &lt;B&gt;&quot;\uff21&quot; &amp; &#x27;e\u0301&#x27;&lt;/B&gt;\u200b\x07\n",
    "lower": " <b>\"\uff41\" & 'e\u0301'</b>\u200b\x07\n",
    "quotes": " <B>\u201c\uff21\u201d & \u2019e\u0301\u2019</B>\u200b\x07\n",
    "no_zero_width": " <B>\"\uff21\" & 'e\u0301'</B>\x07\n",
    "no_control": " <B>\"\uff21\" & 'e\u0301'</B>\u200b",
    "prefix": "[user] " + HOSTILE,
    "suffix": HOSTILE + " [sent by user]",
    "cut": ' <B>"\uff21" & ',
    "empty": "",
}


@pytest.mark.parametrize("form", FORMS)
def test_how_a_prompt_is_recorded(form: str, api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.update_settings(recorded_as=form)
    session_id = api.bound()
    stream = events(api.ask(session_id, HOSTILE).text)
    assert stream[0][1] == {"type": "user_input", "content": FORMS[form]}
    assert _prompts(api, session_id) == [FORMS[form]]
    assert [turn.prompt for turn in emulator.turns] == [emulator.requests[1].prompt] == [HOSTILE]
    assert emulator.completed(prompt=HOSTILE) == 1


def test_a_follow_up_question_works_in_whatever_form_the_one_before_was_recorded(
    api: Api, emulator: LlamaCloudEmulator
) -> None:
    emulator.settings.recorded_as = "empty"
    session_id = api.bound()
    api.ask(session_id, QUESTION)
    leaning = api.ask(session_id, "And in Q2?").text
    assert "43.9 million" in leaning
    assert "Trondheim" not in leaning


@pytest.mark.parametrize("window", [0, 1, 4, 100])
def test_a_history_that_shows_its_last_events_only(window: int, api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.history_window = window
    session_id = api.bound()
    api.ask(session_id)
    api.ask(session_id)
    whole = WHOLE * 2
    assert api.types(session_id) == whole[max(0, len(whole) - window) :]
    assert api.http.get(f"/api/v1/chat/{session_id}").json()["generated_title"] == QUESTION
    assert len(emulator.sessions[session_id]["events"]) == len(whole)
    assert emulator.turns[1].position == 1


def test_an_answer_that_only_the_history_has(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.settings.text_in = "history"
    session_id = api.bound()
    kinds = [data["type"] for _, data in events(api.ask(session_id).text)]
    assert kinds[-1] == "stop"
    assert {"text", "text_delta"}.isdisjoint(kinds)
    assert "thinking_delta" in kinds
    assert api.types(session_id) == WHOLE
    assert "47.5 million" in api.history(session_id)[-2]["content"]
    # A turn that fails has no answer anywhere.
    emulator.inject(Fault("error_stop", after_events=99))
    api.ask(session_id)
    assert api.types(session_id)[len(WHOLE) :] == [*WHOLE[:4], "stop"]


@pytest.mark.parametrize("how", ["broken_json", "null", "list"])
def test_a_malformed_text(how: str, api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.update_settings(malformed_text=how)
    session_id = api.bound()
    blocks = [block.split("data: ")[1] for block in api.ask(session_id).text.split("\n\n") if block]
    assert not any('"text_delta"' in block for block in blocks)
    (data,) = (block for block in blocks if block.startswith('{"type":"text"'))
    answer = api.history(session_id)[-2]
    assert (answer["type"], "47.5 million" in answer["content"]) == ("text", True)
    if how == "broken_json":
        with pytest.raises(json.JSONDecodeError):
            json.loads(data)
        whole = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        assert data == whole[: len(whole) // 2]
    else:
        assert json.loads(data)["content"] == (None if how == "null" else [answer["content"]])
    assert json.loads(blocks[-1])["is_error"] is False


@pytest.mark.parametrize("survives", [True, False])
@pytest.mark.parametrize("latency", [0.0, 60.0])
def test_a_prompt_that_was_accepted_and_refused(
    latency: float, survives: bool, api: Api, emulator: LlamaCloudEmulator, clock: Clock
) -> None:
    emulator.update_settings(turn_latency=latency, survives_disconnect=survives)
    session_id = api.bound()
    emulator.inject(
        Fault("status_after", endpoint="stream", retry_after="7"),
        Fault("status_after", endpoint="stream", status=503, detail="overloaded"),
    )
    first, second = api.ask(session_id, "first"), api.ask(session_id, "second")
    if latency:
        # Neither waits for its turn.
        assert [turn.state for turn in emulator.turns] == ["running"]
    assert (first.status_code, first.headers["retry-after"]) == (429, "7")
    assert first.json() == {"detail": "Too Many Requests"}
    assert (second.status_code, second.json()) == (503, {"detail": "overloaded"})
    assert [record.status for record in emulator.requests[1:3]] == [429, 503]
    for count in (1, 2):
        clock.forward(latency)
        eventually(lambda: emulator.completed(session_id) >= count)  # noqa: B023  # it is over
    assert _prompts(api, session_id) == ["first", "second"]


def test_other_calls_that_were_done_and_refused(api: Api, emulator: LlamaCloudEmulator) -> None:
    emulator.inject(Fault("status_after"))
    refused = api.http.post("/api/v1/chat", json={"index_ids": [INDEX_FILINGS]})
    assert (refused.status_code, "retry-after" in refused.headers) == (429, False)
    (session_id,) = emulator.sessions
    emulator.inject(Fault("status_after", status=500, endpoint="delete"))
    assert api.http.delete(f"/api/v1/chat/{session_id}").status_code == 500
    assert emulator.deleted == [session_id]


def test_another_clients_turn_appears_at_once(api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.settings.history_lag = 60.0
    control = EmulatorControl(emulator.url)
    session_id = api.bound()
    api.ask(session_id, "ours")
    control.intrude(session_id, "theirs")
    assert api.types(session_id) == FOREIGN
    assert api.history(session_id)[0]["content"] == "theirs"
    clock.forward()
    assert len(api.history(session_id)) == len(FOREIGN) + len(WHOLE)
    # What was shown first stays first.
    assert _prompts(api, session_id) == ["theirs", "ours"]
    assert emulator.posts() == len(emulator.turns) == 1


def test_another_clients_turn_appears_later(api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    session_id = api.bound()
    emulator.intrude(session_id, "theirs", after=60.0)
    api.ask(session_id, "first")
    assert _prompts(api, session_id) == ["first"]
    clock.forward()
    # Nobody looked meanwhile, and yet it came before the next turn.
    api.ask(session_id, "second")
    assert _prompts(api, session_id) == ["first", "theirs", "second"]
    assert [turn.position for turn in emulator.turns] == [0, 2]


def test_intrude_needs_an_existing_session(api: Api, emulator: LlamaCloudEmulator) -> None:
    for emulated in (emulator, EmulatorControl(emulator.url)):
        with pytest.raises(ValueError, match="no session 'ses-nowhere'"):
            emulated.intrude("ses-nowhere", "theirs")
        with pytest.raises(ValueError, match="cannot be negative"):
            emulated.intrude(api.bound(), "theirs", after=-1.0)


def test_another_clients_turn_is_always_first(api: Api, emulator: LlamaCloudEmulator, clock: Clock) -> None:
    emulator.update_settings(foreign_first="theirs", history_lag=60.0)
    session_id = api.bound()
    stream = events(api.ask(session_id, "ours").text)
    assert [data["content"] for _, data in stream if data["type"] == "user_input"] == ["ours"]
    assert api.history(session_id) == [{"type": "user_input", "content": "theirs"}]
    clock.forward()
    assert api.types(session_id) == ["user_input", *WHOLE]
    assert _prompts(api, session_id) == ["theirs", "ours"]
    api.ask(session_id, "again ours")
    assert _prompts(api, session_id) == ["theirs", "ours", "theirs"]
    assert [(turn.prompt, turn.position) for turn in emulator.turns] == [("ours", 1), ("again ours", 3)]


def test_a_queued_turn_that_does_not_survive_can_be_accepted_and_refused(
    api: Api, emulator: LlamaCloudEmulator, clock: Clock
) -> None:
    emulator.update_settings(turn_latency=60.0, survives_disconnect=False)
    session_id = api.bound()
    emulator.inject(Fault("status_after", prompt="second"))
    body = {"index_ids": [INDEX_FILINGS], "prompt": "first"}
    with api.http.stream("POST", f"/api/v1/chat/{session_id}/messages/stream", json=body) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        refused = httpx.post(
            f"{emulator.url}/api/v1/chat/{session_id}/messages/stream",
            json={"index_ids": [INDEX_FILINGS], "prompt": "second"},
            headers={"Authorization": f"Bearer {emulator.api_key}"},
            timeout=60.0,
            trust_env=False,
        )
        assert refused.status_code == 429
        assert [turn.prompt for turn in emulator.turns] == ["first"]
        clock.forward()
        for _ in chunks:
            pass
    eventually(lambda: len(emulator.turns) == 2)
    clock.forward()
    eventually(lambda: emulator.completed(session_id) == 2)
    assert [turn.prompt for turn in emulator.turns] == ["first", "second"]
