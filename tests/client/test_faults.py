"""Each fault of a plain call: what the user sees, how often it was sent, and that nothing was lost or doubled."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import AsyncLlamaCloudClient, ClientConfig, LlamaCloudClient, responses, retry
from airflow_provider_llamachat.testing import INDEX_FILINGS, Fault, LlamaCloudEmulator

Sender = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def send(request: pytest.FixtureRequest, config: Callable[..., ClientConfig]) -> Sender:
    """Call a method by name on a fresh client of either kind."""

    def sync(method: str, *args: Any, values: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        with LlamaCloudClient(config(**(values or {}))) as client:
            return getattr(client, method)(*args, **kwargs)

    def asynchronous(method: str, *args: Any, values: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        async def run() -> Any:
            async with await AsyncLlamaCloudClient.open(config(**(values or {}))) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(run())

    return sync if request.param == "sync" else asynchronous


REPLAYED = [
    "reset_before",
    "reset_after",
    "truncated_body",
    pytest.param("hang", marks=pytest.mark.long),
    pytest.param("hang_after", marks=pytest.mark.long),
]


@pytest.mark.parametrize("kind", REPLAYED)
def test_a_request_whose_response_was_lost_is_repeated(
    kind: str, send: Sender, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault(kind, endpoint="projects"))
    assert send("list_projects", values={"timeout": 1.0} if "hang" in kind else None)
    assert len(llamacloud_emulator.requests) == 2


def test_a_404_that_may_come_from_a_wrong_base_url_does_not_show_that_a_session_was_deleted(
    send: Sender, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    session = send("create_session")
    llamacloud_emulator.inject(Fault("status", endpoint="delete", status=503))
    llamacloud_emulator.inject(Fault("status", endpoint="delete", status=404, detail="Not Found", times=None))
    with pytest.raises(errors.NotFoundError, match="Check the connection's Base URL"):
        send("delete_session", session.session_id)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_busy_statuses_are_replayed(status: int, send: Sender, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(Fault("status", status=status, times=2))
    assert send("list_projects")
    assert len(llamacloud_emulator.requests) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.RequestRefusedError),
        (401, errors.AuthenticationError),
        (402, errors.PaymentRequiredError),
        (403, errors.PermissionDeniedError),
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (422, errors.UnprocessableError),
        (500, errors.ServerError),
        (501, errors.ServerError),
    ],
)
def test_other_statuses_are_raised_at_once(
    status: int, kind: type[errors.LlamaCloudError], send: Sender, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", status=status, times=None, detail="because of reasons"))
    with pytest.raises(kind, match="because of reasons") as caught:
        send("get_session", "ses-x")
    assert caught.value.status == status
    assert caught.value.session_id == "ses-x"
    assert caught.value.request_id
    assert llamacloud_emulator.url in str(caught.value)
    assert "default project" in str(caught.value)
    assert len(llamacloud_emulator.requests) == 1


@pytest.mark.parametrize(("max_retries", "sent"), [(0, 1), (1, 2), (4, 5)])
def test_the_number_of_replays_is_the_connections(
    max_retries: int, sent: int, send: Sender, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    llamacloud_emulator.inject(Fault("status", status=503, times=None))
    with pytest.raises(errors.ServerError):
        send("list_projects", values={"max_retries": max_retries})
    assert len(llamacloud_emulator.requests) == sent


def test_a_replayed_create_leaves_at_most_empty_sessions(send: Sender, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(Fault("reset_after", endpoint="create"))
    session = send("create_session", [INDEX_FILINGS])
    assert len(llamacloud_emulator.sessions) == 2
    assert session.session_id in llamacloud_emulator.sessions


def test_a_delete_whose_answer_was_lost_is_a_delete(send: Sender, llamacloud_emulator: LlamaCloudEmulator) -> None:
    session = send("create_session")
    llamacloud_emulator.inject(Fault("reset_after", endpoint="delete"))
    assert send("delete_session", session.session_id) is None
    assert llamacloud_emulator.deleted == [session.session_id]
    with pytest.raises(errors.NotFoundError):
        send("delete_session", session.session_id)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("malformed_json"), "did not return a LlamaCloud API response"),
        (Fault("html", status=200), "did not return a LlamaCloud API response"),
        (
            Fault("redirect", location="https://elsewhere.example/login?x=1"),
            "a redirect to 'https://elsewhere.example/login",
        ),
    ],
)
def test_a_response_that_is_not_the_apis_is_explained(
    fault: Fault, words: str, send: Sender, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    session = send("create_session")
    llamacloud_emulator.inject(fault)
    with pytest.raises(errors.LlamaCloudProtocolError, match=words) as caught:
        send("get_session", session.session_id)
    assert "Check the connection's Base URL" in str(caught.value)
    assert len(llamacloud_emulator.requests) == 2


def test_an_html_page_in_response_to_a_delete_is_an_error(
    send: Sender, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    session = send("create_session")
    llamacloud_emulator.inject(Fault("html", endpoint="delete", status=200))
    with pytest.raises(errors.LlamaCloudProtocolError, match="an HTML page"):
        send("delete_session", session.session_id)
    assert llamacloud_emulator.deleted == []
    send("delete_session", session.session_id)
    assert llamacloud_emulator.deleted == [session.session_id]


def test_a_huge_answer_is_not_read_to_its_end(
    send: Sender, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "MAX_BODY", 2**20)
    llamacloud_emulator.inject(Fault("huge", endpoint="projects"))
    with pytest.raises(errors.LlamaCloudProtocolError, match="more than 1 MiB"):
        send("list_projects", values={})


def test_a_very_slow_response_ends_at_the_total_deadline(send: Sender, llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(Fault("delay", delay=60.0, times=None))
    begin = time.monotonic()
    with pytest.raises(errors.LlamaCloudTimeoutError):
        send("list_projects", values={"timeout": 0.3, "max_retries": 200, "total_timeout": 1.0})
    assert time.monotonic() - begin < 30.0  # the attempts alone take a minute


def test_a_refused_connection_is_explained(send: Sender) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(errors.LlamaCloudConnectionError, match="could not be reached") as caught:
        send("list_projects", values={"base_url": url, "max_retries": 0})
    assert caught.value.accepted is False


def test_the_error_for_a_wrong_key_names_the_regions(send: Sender, llamacloud_emulator: LlamaCloudEmulator) -> None:
    with pytest.raises(errors.AuthenticationError) as caught:
        send("list_projects", values={"api_key": "llx-canary-wrong"})
    assert "canary" not in str(caught.value)
    assert "api.cloud.eu.llamaindex.ai" in str(caught.value)
    assert len(llamacloud_emulator.requests) == 1


def test_422_lists_field_and_reason(send: Sender) -> None:
    session = send("create_session")
    with pytest.raises(errors.UnprocessableError, match=r"prompt: .*1000"):
        send("send_message", session.session_id, "x" * 1001, index_ids=[INDEX_FILINGS])


def test_a_body_that_echoes_the_key_does_not_put_it_into_the_message(
    send: Sender, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    detail = f"proxy dump: authorization={llamacloud_emulator.api_key} " + "x" * 5000
    llamacloud_emulator.inject(Fault("status", status=403, detail=detail))
    with pytest.raises(errors.PermissionDeniedError) as caught:
        send("list_projects")
    assert llamacloud_emulator.api_key not in str(caught.value)
    assert len(str(caught.value)) < 1500


def _date_of_mail(moment: float) -> str:
    return formatdate(moment, usegmt=True)


def _date_of_c(moment: float) -> str:
    return time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime(moment))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-4", 0.0),
        ((_date_of_mail, 3600), 3600.0),
        ((_date_of_mail, -60), 0.0),
        ((_date_of_c, 3600), 3600.0),
        ("soon", None),
        ("", None),
        ("nan", None),
    ],
    ids=["seconds", "fraction", "negative", "date to come", "date gone by", "date of C", "words", "empty", "nan"],
)
def test_retry_after_in_all_its_forms(
    value: str | tuple[Callable[[float], str], int], expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A date counts from now; the parameters were made when the tests were collected, which may be long ago.
    text = value if isinstance(value, str) else value[0](time.time() + value[1])
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        seconds = responses.retry_after({"retry-after": text})
    finally:
        monkeypatch.undo()
        time.tzset()
    assert seconds == (pytest.approx(expected, abs=300) if expected is not None else None)


def test_pauses_grow_are_jittered_and_obey_retry_after_up_to_a_cap() -> None:
    import contextvars

    def measure() -> None:
        # Outside of the fixture's no_backoff().
        retry._pauses.set(True)  # noqa: SLF001  # no_backoff() cannot be undone from within
        for attempt in range(1, 12):
            longest = min(retry.MAX_WAIT, retry.FIRST_WAIT * 2 ** (attempt - 1))
            drawn = {retry.pause(attempt) for _ in range(50)}
            assert all(longest / 2 <= seconds <= longest for seconds in drawn)
            assert len(drawn) > 10
        assert retry.pause(1, 30.0) == 30.0
        assert retry.pause(1, 10_000.0) == retry.MAX_RETRY_AFTER

    contextvars.copy_context().run(measure)
    assert retry.pause(9, 30.0) == 0.0


def test_a_proxy_from_the_environment_is_used(
    config: Callable[..., ClientConfig], llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A plain proxy gets an absolute URI, for which the emulator has no route. Its 404 for a host that does not exist shows
    # that the proxy was asked.
    monkeypatch.setenv("HTTP_PROXY", llamacloud_emulator.url)
    monkeypatch.setenv("NO_PROXY", "")
    with (
        LlamaCloudClient(config(base_url="http://llamacloud.invalid")) as client,
        pytest.raises(errors.RequestRefusedError, match=r"llamacloud\.invalid.*answered 404"),
    ):
        client.list_projects()
