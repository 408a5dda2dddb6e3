"""A turn is paid for once, and its answer handed over, whatever the server records and however late it shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from airflow_provider_llamachat.client import AsyncLlamaCloudClient
from airflow_provider_llamachat.exceptions import ChatTurnInterruptedError, LlamaCloudTaskStateError
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator, Settings
from tests.airflow.tries import Store, a_try
from tests.doubt.lives import PROMPT, Life, Mode, connect

Begin = Callable[..., Life]
FORMS = get_args(get_type_hints(Settings)["recorded_as"])
LOSSES = [
    Fault("reset_after", endpoint="stream"),
    Fault("status_after", endpoint="stream", status=504),
    Fault("status_after", endpoint="stream", status=429),
    Fault("cut", endpoint="stream", after_events=1),
    Fault("stream_reset", endpoint="stream", after_events=0),
]
# Each form with one loss; the other pairs take longer than they tell.
PAIRS = [
    pytest.param(loss, form, marks=() if place % len(LOSSES) == LOSSES.index(loss) else pytest.mark.long)
    for place, form in enumerate(FORMS)
    for loss in LOSSES
]


def told(value: Any) -> str:
    """The id of a parameter."""
    return f"{value.kind} {value.status or ''}" if isinstance(value, Fault) else str(value)


def is_right(answer: str | None) -> bool:
    return answer is not None and "47.5 million" in answer


@pytest.mark.parametrize("form", FORMS)
def test_without_a_fault_one_attempt_pays_once_in_whatever_form_prompts_are_recorded(
    form: Any, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.recorded_as = form
    one = life()
    assert is_right(one.live())
    assert (one.paid, one.tries) == (1, 1)


@pytest.mark.parametrize(("loss", "form"), PAIRS, ids=told)
def test_a_lost_answer_is_found_in_whatever_form_prompts_are_recorded(
    loss: Fault, form: Any, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.recorded_as = form
    llamacloud_emulator.inject(loss)
    one = life()
    assert is_right(one.live())
    assert one.paid == 1


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(loss, marks=() if loss.kind in {"reset_after", "malformed_json"} else pytest.mark.long)
        for loss in (
            *LOSSES,
            Fault("status_after", endpoint="stream", status=502),
            Fault("malformed_json", endpoint="stream"),  # a gateway's 200 that is no stream
        )
    ],
    ids=told,
)
def test_a_prompt_that_the_history_shows_late_is_not_sent_again(
    loss: Fault, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.history_lag = 0.6
    llamacloud_emulator.inject(loss)
    one = life(extra={"history_lag": 1.5})
    assert is_right(one.live())
    assert one.paid == 1


def test_a_prompt_that_never_arrived_is_sent_again_after_the_history_lag(
    life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("reset_before", endpoint="stream"))
    one = life(extra={"history_lag": 1.0})
    began = time.monotonic()
    assert is_right(one.live())
    assert time.monotonic() - began > 1.0
    assert (one.paid, one.tries) == (1, 1)


@pytest.mark.parametrize("has_store", [True, pytest.param(False, marks=pytest.mark.long)], ids=["3.3", "2.11"])
def test_a_process_lost_before_the_first_byte_costs_no_second_turn_although_the_history_lags(
    has_store: bool, mode: Mode, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.history_lag = 1.2
    one = life(extra={"history_lag": 2.5}, store=Store() if has_store else None)
    with one.losing_its_process():
        assert one.attempt() is None
    assert is_right(one.attempt())
    assert one.paid == 1


@pytest.mark.parametrize(
    ("has_store", "form"),
    [pytest.param(True, form, id=f"3.3-{form}") for form in FORMS]
    # A batch does not need the store. Of the other modes' retries, these three show what is known by text and what is not.
    + [
        pytest.param(
            False, form, id=f"2.11-{form}", marks=() if form in {"verbatim", "nfc", "cut"} else pytest.mark.long
        )
        for form in FORMS
    ],
)
def test_a_lost_process_costs_one_turn_if_the_retry_can_know_its_prompt(
    has_store: bool, form: Any, mode: Mode, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.recorded_as = form
    one = life(store=Store() if has_store else None)
    with one.losing_its_process():
        assert one.attempt() is None
    assert is_right(one.attempt())
    # Without a task state store a retry knows its turn by its text alone: one that was cut, emptied or added to is asked again.
    # A batch has its journal.
    is_unknown = not has_store and mode != "batch" and form in {"prefix", "suffix", "cut", "empty"}
    assert one.paid == (2 if is_unknown else 1)


def test_a_trigger_that_starts_late_looks_before_it_posts(
    mode: Mode, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    if mode != "deferred":
        pytest.skip("only a deferred task has a trigger")
    one = life(extra={"history_lag": 0.8})
    began = time.monotonic()
    assert is_right(one.attempt(late_by=60.0))
    assert time.monotonic() - began > 0.8
    assert one.paid == 1


def test_a_worker_waits_for_the_answer_that_its_trigger_saw(
    life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.history_lag = 1.2
    one = life(extra={"history_lag": 2.5})
    assert is_right(one.attempt())
    assert one.paid == 1


def test_another_prompt_that_shows_first_does_not_hide_ours(
    life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.update(foreign_first="Who are you?", history_lag=0.8)
    llamacloud_emulator.inject(Fault("cut", endpoint="stream", after_events=1))
    one = life(extra={"history_lag": 2.5})
    assert is_right(one.live())
    assert one.paid == 1


@pytest.mark.parametrize("has_store", [True, False], ids=["3.3", "2.11"])
def test_a_turn_that_cannot_be_told_to_be_ours_fails_and_no_retry_pays_again(
    has_store: bool, mode: Mode, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("hang", endpoint="stream"))
    one = life(extra={"timeout": 0.4}, store=Store() if has_store else None)
    session_id = one.session_id

    def intrude() -> None:
        while not llamacloud_emulator.posts(session_id):
            time.sleep(0.01)
        llamacloud_emulator.intrude(session_id, "Who are you?")

    threading.Thread(target=intrude, daemon=True).start()
    if not has_store and mode != "batch":
        # Only a store, or a batch's journal, knows where the turn of an earlier attempt should be.
        assert one.attempt() is None
        assert getattr(one.errors[0], "reason", "") == "foreign"
        assert is_right(one.attempt())
        assert (llamacloud_emulator.posts(session_id), one.paid) == (2, 1)
        return
    assert one.live() is None
    assert llamacloud_emulator.posts(session_id) == 1
    if mode != "batch":  # a batch reports its items in its results, and fails with an error of its own
        assert {type(problem) for problem in one.errors} == {ChatTurnInterruptedError}
        assert {getattr(problem, "reason", "") for problem in one.errors} == {"foreign"}
    # The Dag's author may decide otherwise.
    one.arguments["on_interrupted"] = "ask_again"
    assert is_right(one.attempt())
    assert one.paid == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("loss", "window"),
    [(None, 5), (None, 9), (LOSSES[0], 9), (LOSSES[3], 5), (LOSSES[3], 9), (LOSSES[4], 9)],
    ids=lambda value: str(getattr(value, "kind", value)),
)
def test_a_history_that_shows_only_its_end_costs_no_second_turn(
    loss: Fault | None, window: int, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    one = life(extra={"timeout": 1.0}, retries=1)
    for number in range(3):
        LlamaCloudHook().send_message(one.session_id, f"Question {number}?")
    llamacloud_emulator.settings.history_window = window
    if loss is not None:
        llamacloud_emulator.inject(loss)
    answer = one.live()
    assert one.paid == 1
    # A reset before the first byte says nothing of acceptance; and five events do not hold a whole turn.
    if window == 9 and (loss is None or loss.kind in {"cut", "stream_reset"}):
        assert is_right(answer)


@pytest.mark.parametrize("malformed", ["broken_json", "null", "list", "none"])
def test_an_answer_that_its_stream_lost_is_read_from_the_history(
    malformed: Any, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.update(
        malformed_text=malformed, text_in="history" if malformed == "none" else "both", history_lag=0.4
    )
    one = life(extra={"history_lag": 2.0})
    assert is_right(one.attempt())
    assert one.paid == 1


def test_an_answer_without_text_is_not_handed_over_while_the_history_cannot_be_read(
    mode: Mode, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.settings.malformed_text = "null"
    before = 2 if mode == "deferred" else 1
    llamacloud_emulator.inject(Fault("redirect", endpoint="get", skip=before, location="http://127.0.0.1:9/elsewhere"))
    one = life()
    assert is_right(one.live())
    # A worker that is resumed reads the history anyway, and a batch looks a second time at its end.
    assert (one.paid, one.tries) == (1, 2 if mode == "worker" else 1)
    assert [getattr(problem, "reason", "") for problem in one.errors] == ["unread"] * (one.tries - 1)


def test_a_prompt_whose_intent_cannot_be_stored_is_not_sent(
    mode: Mode, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    store = Store()
    store.broken = True
    one = life(store=store)
    if mode == "batch":
        one.arguments["output_path"] = None  # its journal is the store then
    assert one.attempt() is None
    assert isinstance(one.errors[0], LlamaCloudTaskStateError)
    assert llamacloud_emulator.posts() == 0
    store.broken = False
    one.arguments.pop("output_path", None)
    assert is_right(one.attempt())
    assert one.paid == 1


@pytest.mark.parametrize("has_store", [True, False], ids=["3.3", "2.11"])
def test_clearing_a_task_that_failed_after_its_answer_adopts_that_answer(
    has_store: bool, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    one = life(store=Store() if has_store else None)
    assert is_right(one.attempt())
    one.clear(has_result=False)
    assert is_right(one.attempt())
    assert one.paid == (1 if has_store else 2)
    if not has_store:  # nothing tells a clear after a failure from one after a success
        return
    one.clear(has_result=True)
    assert is_right(one.attempt())
    assert one.paid == 2


def test_a_cleared_task_whose_first_attempt_failed_early_asks_again(
    mode: Mode, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    one = life(extra={"max_retries": 0})
    assert is_right(one.attempt())
    one.clear(has_result=True)
    # A batch looks a second time at its end.
    llamacloud_emulator.inject(*[Fault("status", endpoint="get", status=503)] * (2 if mode == "batch" else 1))
    assert one.attempt() is None
    one.server.xcom_keys_to_clear = []  # Airflow deleted the result when that attempt began
    assert is_right(one.attempt())
    assert one.paid == 2


def test_a_fault_free_turn_costs_no_more_requests_than_it_needs(
    mode: Mode, life: Begin, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    one = life()
    before = len(llamacloud_emulator.requests)
    assert is_right(one.attempt())
    made = [request.endpoint for request in llamacloud_emulator.requests[before:]]
    assert (
        made
        == {
            "worker": ["get", "stream"],
            "deferred": ["get", "get", "stream", "get"],
            "batch": ["get", "stream"],
        }[mode]
    )


def test_the_prompt_of_these_tests_is_changed_by_every_form() -> None:
    assert len(FORMS) == 13
    assert PROMPT.strip() == PROMPT  # "trimmed" changes nothing here; the emulator's own tests show that it trims


@pytest.mark.long
@pytest.mark.parametrize("window", [pytest.param(6, marks=pytest.mark.long), 9])
def test_a_prompt_that_follows_another_in_a_batch_is_paid_once_although_the_history_loses_its_beginning(
    window: int, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect(llamacloud_emulator, monkeypatch)
    llamacloud_emulator.settings.history_window = window
    stream, posted = AsyncLlamaCloudClient.stream, []

    async def losing_the_second(client: AsyncLlamaCloudClient, question: Any, *values: Any) -> Any:
        posted.append(question)
        if len(posted) == 2:
            llamacloud_emulator.inject(Fault("reset_after", endpoint="stream"))
        async for event in stream(client, question, *values):
            yield event

    monkeypatch.setattr(AsyncLlamaCloudClient, "stream", losing_the_second)
    task = ChatBatchOperator(
        task_id="ask",
        prompts=["What comes first?", PROMPT],
        index_ids=[INDEX_FILINGS],
        session_mode="shared",
        output_path=tmp_path / "results.jsonl",
    )
    type(task).execute.__wrapped__(task, a_try(task, 1, store=Store()))  # type: ignore[attr-defined]
    assert [turn.prompt for turn in llamacloud_emulator.turns] == ["What comes first?", PROMPT]
