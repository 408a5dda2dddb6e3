"""The judge itself: an honest provider passes, and each promise that is broken on purpose is found."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_llamachat.batch import records
from airflow_provider_llamachat.conversation import ask, history, recovery
from airflow_provider_llamachat.conversation.question import Trace
from airflow_provider_llamachat.exceptions import ServerError
from airflow_provider_llamachat.operators.base import LlamaCloudOperator
from airflow_provider_llamachat.operators.batch import ChatBatchOperator
from airflow_provider_llamachat.operators.chat import DeleteChatSessionOperator, SendChatMessageOperator
from airflow_provider_llamachat.testing import Fault
from tests.chaos.handmade import SETTINGS, batch, conversation
from tests.chaos.lanes import Verdict
from tests.chaos.plans import Schedule, schedule

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("chosen", [conversation(), batch()], ids=["conversation", "batch"])
def test_a_correct_provider_passes(chosen: Schedule, run: Callable[[Schedule], Verdict]) -> None:
    verdict = run(chosen)
    assert (verdict.violations, verdict.known) == ([], {})
    assert verdict.counts["answered"] == verdict.counts["asked"] == verdict.counts["turns"] > 0
    assert verdict.counts["kills"] == (2 if chosen.shape == "worker" else 0)


def forgets(patch: pytest.MonkeyPatch) -> None:
    """Each try asks as if it was the first."""
    fresh = lambda session, *_, **__: Trace(history.count_turns(session.events))  # noqa: E731  # a stand-in
    patch.setattr(history, "begin", fresh)


def mixes_up(patch: pytest.MonkeyPatch) -> None:
    """The answer of one turn is taken for another's."""
    finish = SendChatMessageOperator._finish  # noqa: SLF001  # a mutation of the product, to be found by the judges
    patch.setattr(
        SendChatMessageOperator,
        "_finish",  # as above
        lambda self, context, turn, **known: finish(self, context, turn, **known).replace("vault", "code-31676-vault"),
    )


def keeps_sessions(patch: pytest.MonkeyPatch) -> None:
    """The session is not deleted."""
    patch.setattr(DeleteChatSessionOperator, "execute", _wrapped(lambda self, context: None))


def says_nothing(patch: pytest.MonkeyPatch) -> None:
    """The session is not deleted, and no log names it."""

    def fail(self: Any, context: Any) -> None:
        raise ServerError("It did not work.")

    patch.setattr(DeleteChatSessionOperator, "execute", _wrapped(fail))
    patch.setattr(LlamaCloudOperator, "log", property(lambda self: logging.getLogger("httpx")))
    for module in (ask, recovery):
        patch.setattr(module, "log", logging.getLogger("httpx"))


def tells_the_key(patch: pytest.MonkeyPatch) -> None:
    """The key is logged."""
    finish = SendChatMessageOperator._finish  # noqa: SLF001  # a mutation of the product, to be found by the judges

    def finish_loudly(self: Any, context: Any, turn: Any, **known: Any) -> Any:
        self.log.info("asked with %s", self.get_hook().get_config().api_key)
        return finish(self, context, turn, **known)

    patch.setattr(SendChatMessageOperator, "_finish", finish_loudly)  # as above


def invents_usage(patch: pytest.MonkeyPatch) -> None:
    """The usage is not the server's."""
    patch.setattr(
        SendChatMessageOperator,
        "_push_usage",  # a mutation, as above
        lambda self, context, *_, **__: self.push(context, "usage", {"total_output_tokens": 1}),
    )


def raises_anything(patch: pytest.MonkeyPatch) -> None:
    """An error that is not one of the provider's."""

    def explode(self: Any, context: Any) -> None:
        raise KeyError("session_id")

    patch.setattr(DeleteChatSessionOperator, "execute", _wrapped(explode))


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    def execute(self: Any, context: Any) -> Any:
        return function(self, context)

    execute.__wrapped__ = function  # type: ignore[attr-defined]  # as Airflow's guard has it
    return execute


@pytest.mark.parametrize(
    ("sabotage", "words"),
    [
        (forgets, "was completed 2 times for 1 task"),
        (mixes_up, "answers more than"),
        (keeps_sessions, "delete succeeded, but session"),
        (says_nothing, "was left over, with a history, and no log names it"),
        (tells_the_key, "the key is in ask_0"),
        (invents_usage, "usage {'total_output_tokens': 1}, but the server counted"),
        (raises_anything, "an error of no class of ours, KeyError"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_promise_is_found(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    words: str,
    run: Callable[[Schedule], Verdict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(monkeypatch)
    assert words in "\n".join(run(conversation()).violations)


def swaps_lines(patch: pytest.MonkeyPatch) -> None:
    """Answers land in the lines of other prompts."""
    made = records.line

    def swapped(item: Any, prepared: Any, result: Any, **options: Any) -> Any:
        right = made(item, prepared, result, **options)
        return {**right, "answer": str(right["answer"]).replace("code-", "kode-")}

    patch.setattr(records, "line", swapped)


def miscounts(patch: pytest.MonkeyPatch) -> None:
    """The manifest does not say what is in the lines."""
    execute = ChatBatchOperator.execute.__wrapped__  # type: ignore[attr-defined]  # past Airflow's guard
    patch.setattr(
        ChatBatchOperator,
        "execute",
        _wrapped(lambda self, context: {**execute(self, context), "answered": 2, "failed": 1}),
    )


@pytest.mark.parametrize(
    ("sabotage", "words"),
    [(swaps_lines, "is no answer to"), (miscounts, "the manifest says")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_batch_is_found(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    words: str,
    run: Callable[[Schedule], Verdict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(monkeypatch)
    assert words in "\n".join(run(batch()).violations)


def test_a_turn_that_is_paid_twice_is_found_whatever_the_history_showed(run: Callable[[Schedule], Verdict]) -> None:
    verdict = run(
        conversation(
            settings={**SETTINGS, "records": "end", "turn_latency": 1.0},
            faults=(Fault("reset_after", endpoint="stream", prompt="vault3x"),),
            tasks=conversation().tasks[:2],
            kills={},
        )
    )
    assert "was completed 2 times for 1 task" in "\n".join(verdict.violations)


def test_a_connection_expects_a_history_as_late_as_its_server_is() -> None:
    for chosen in map(schedule, range(300)):
        written = chosen.settings["turn_latency"] if chosen.settings["records"] == "end" else 0.0
        late = chosen.settings["history_lag"] + written
        assert chosen.connection["history_lag"] >= late
        assert late == 0.0 or chosen.connection["history_lag"] > late + 0.5


def test_a_seed_gives_the_same_schedule_each_time() -> None:
    for seed in range(200):
        first, second = schedule(seed), schedule(seed)
        assert first == second
        assert [first.kill("ask_0", number, last=False) for number in range(9)] == [
            second.kill("ask_0", number, last=False) for number in range(9)
        ]
    assert len({repr(schedule(seed)) for seed in range(200)}) == 200
