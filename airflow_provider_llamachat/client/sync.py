"""The synchronous client: sends calls, reads streams, carries out the steps of a turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, cast

import httpx
from tenacity import Retrying

from airflow_provider_llamachat import endpoints, exceptions, models
from airflow_provider_llamachat.arguments import seconds
from airflow_provider_llamachat.asking import Asking, Outcome, Pause, Post, Question, ReadHistory, Reply, ask
from airflow_provider_llamachat.client import calls, replaying, replies
from airflow_provider_llamachat.client.config import ClientConfig
from airflow_provider_llamachat.client.deadlines import obey_deadlines, until
from airflow_provider_llamachat.client.decoding import Unpacker
from airflow_provider_llamachat.client.streaming import read_events
from airflow_provider_llamachat.turns import TurnFolder

Observer = Callable[[models.Event], None]
"""Is shown each event of a turn as it arrives."""


class LlamaCloudClient:
    """LlamaCloud's chat API for synchronous code. Use it as a context manager, or close it.

    Each method takes ``project_id`` and ``organization_id`` (UUIDs) to override the configured ones for that call. All raise
    the classes of :mod:`airflow_provider_llamachat.exceptions`; see the API reference of each operation at
    https://developers.llamaindex.ai/reference/.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._calls = calls.Calls(config)
        self._http = calls.http_client(httpx.Client, config, event_hooks={"response": [calls.hide_location]})
        obey_deadlines(self._http)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.config.base_url}>"

    def __del__(self) -> None:
        # A hook made for one call (`LlamaCloudHook().create_session()`) has nobody who closes it.
        if hasattr(self, "_http"):
            self._http.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._http.is_closed

    def create_session(
        self,
        index_ids: list[str] | None = None,
        *,
        shared_access: str | None = None,
        project_id: str | None = None,
        organization_id: str | None = None,
    ) -> models.SessionSummary:
        """Create a chat session, bound to at most ten indexes or to none (POST /api/v1/chat).

        :param shared_access: what the session's share link grants, ``query`` or ``read_only``; None leaves it to the server.
        """
        return cast(
            "models.SessionSummary",
            self._send(self._calls.create(index_ids, shared_access, project_id, organization_id)),
        )

    def get_session(
        self, session_id: str, *, project_id: str | None = None, organization_id: str | None = None
    ) -> models.Session:
        """Read a session with its whole history (GET /api/v1/chat/{session_id})."""
        call = self._calls.session(endpoints.GET_SESSION, session_id, project_id, organization_id)
        return cast("models.Session", self._send(call))

    def get_session_summary(
        self, session_id: str, *, project_id: str | None = None, organization_id: str | None = None
    ) -> models.SessionSummary:
        """Read a session without its history (GET /api/v1/chat/{session_id}/summary)."""
        call = self._calls.session(endpoints.GET_SESSION_SUMMARY, session_id, project_id, organization_id)
        return cast("models.SessionSummary", self._send(call))

    def list_sessions(
        self, *, page_size: int | None = None, project_id: str | None = None, organization_id: str | None = None
    ) -> Iterator[models.SessionSummary]:
        """Iterate over the project's sessions; a page is fetched when the iteration comes to it (GET /api/v1/chat).

        :param page_size: sessions of one page; None leaves it to the server.
        """
        yield from self._pages(endpoints.LIST_SESSIONS, page_size, project_id, organization_id)

    def delete_session(
        self, session_id: str, *, project_id: str | None = None, organization_id: str | None = None
    ) -> None:
        """Delete a session (DELETE /api/v1/chat/{session_id}).

        :raises NotFoundError: there was no such session; not raised when an earlier attempt of this very call deleted it.
        """
        self._send(self._calls.session(endpoints.DELETE_SESSION, session_id, project_id, organization_id))

    def list_projects(
        self, *, project_name: str | None = None, organization_id: str | None = None
    ) -> list[models.Project]:
        """List the projects the key can see (GET /api/v1/projects)."""
        return cast("list[models.Project]", self._send(self._calls.projects(project_name, organization_id)))

    def get_project(self, project_id: str, *, organization_id: str | None = None) -> models.Project:
        """Read a project (GET /api/v1/projects/{project_id})."""
        return cast("models.Project", self._send(self._calls.project(project_id, organization_id)))

    def list_indexes(
        self, *, page_size: int | None = None, project_id: str | None = None, organization_id: str | None = None
    ) -> Iterator[models.Index]:
        """Iterate over the project's indexes, page by page (GET /api/v1/indexes).

        :param page_size: indexes of one page; None leaves it to the server.
        """
        yield from self._pages(endpoints.LIST_INDEXES, page_size, project_id, organization_id)

    def get_index(
        self,
        index_id: str,
        *,
        expand_sync: bool = False,
        project_id: str | None = None,
        organization_id: str | None = None,
    ) -> models.Index:
        """Read an index (GET /api/v1/indexes/{index_id}); ``expand_sync`` asks for ``sync_in_progress`` as well."""
        call = self._calls.index(endpoints.GET_INDEX, index_id, project_id, organization_id, expand=expand_sync)
        return cast("models.Index", self._send(call))

    def sync_index(self, index_id: str, *, project_id: str | None = None, organization_id: str | None = None) -> bool:
        """Start a sync of an index (POST /api/v1/indexes/{index_id}/sync).

        :returns: True when this call started it, False when one was running already (409).
        """
        call = self._calls.index(endpoints.SYNC_INDEX, index_id, project_id, organization_id, expand=False)
        try:
            self._send(call)
        except exceptions.ConflictError:
            return False
        return True

    def stream_message(
        self,
        session_id: str,
        prompt: str,
        *,
        index_ids: list[str] | None = None,
        require_all_indexes: bool = False,
        turn_timeout: float | timedelta = calls.DEFAULT_TURN_TIMEOUT,
        project_id: str | None = None,
        organization_id: str | None = None,
    ) -> Iterator[models.Event]:
        """Post a prompt once and iterate over the events of its turn as they arrive, deltas included.

        This is one POST without any safety net: what to do about a failure is the caller's business. :meth:`send_message` is the
        safe form. The last event is a ``StopEvent``; its ``is_error`` is the turn's verdict.

        :param index_ids: indexes the turn may use; None means those the session is bound to.
        :param turn_timeout: seconds (or a timedelta) that the whole stream may take.
        :raises InvalidArgumentError: an argument is not usable; nothing was sent.
        :raises ChatTurnInterruptedError: the stream ended without a ``StopEvent``.
        """
        asked = calls.question(
            session_id,
            prompt,
            index_ids,
            require_all_indexes=require_all_indexes,
            project_id=project_id,
            organization_id=organization_id,
        )
        return self._events(asked, seconds(turn_timeout, "turn_timeout"))

    def _events(self, asked: Question, patience: float) -> Generator[models.Event, None, None]:
        deadline = time.time() + patience
        if not asked.index_ids:
            asked, _ = calls.completed(asked, 0, self._send(self._calls.history(asked)))
        with closing(self._stream(asked, deadline)) as events:
            for event in events:
                yield event
                if isinstance(event, models.StopEvent):
                    return
        raise calls.ended_early(asked.session_id)

    def send_message(
        self,
        session_id: str,
        prompt: str,
        *,
        index_ids: list[str] | None = None,
        require_all_indexes: bool = False,
        baseline: int | None = None,
        resume: bool = False,
        accepted: bool = False,
        ask_again: bool = False,
        turn_timeout: float | timedelta = calls.DEFAULT_TURN_TIMEOUT,
        deadline: float | None = None,
        on_event: Observer | None = None,
        project_id: str | None = None,
        organization_id: str | None = None,
    ) -> models.ChatTurn:
        """Ask and return the finished turn, paid for once: whatever leaves doubt is settled by the session's history.

        :param index_ids: indexes the turn may use; None means those the session is bound to.
        :param baseline: how many turns the session had before this question was first asked; None reads it now.
        :param resume: the question may have been asked since ``baseline``: look for its turn before posting.
        :param accepted: with ``resume``: the server was seen to take the question. It is then not posted again just because the history
            does not show it.
        :param ask_again: with ``resume``, post once more when the turn is there, unfinished and no longer growing.
        :param turn_timeout: seconds (or a timedelta) for the whole turn; ``deadline`` (epoch seconds) wins over it.
        :param on_event: is shown each event as it arrives; nothing when the answer is read from the history.
        """
        asked = calls.question(
            session_id,
            prompt,
            index_ids,
            require_all_indexes=require_all_indexes,
            project_id=project_id,
            organization_id=organization_id,
        )
        limits = calls.limits(self.config, deadline, turn_timeout)
        try:
            if baseline is None or not asked.index_ids:
                asked, baseline = calls.completed(asked, baseline, self._send(self._calls.history(asked)))
            steps = ask(asked, limits, baseline=baseline, resume=resume, accepted=accepted, ask_again=ask_again)
            return self._carry_out(steps, asked, limits.deadline, on_event)
        except exceptions.LlamaCloudError as problem:
            raise replies.redacted(problem, self.config)  # noqa: B904  # it is the same error

    def _carry_out(self, steps: Asking, asked: Question, deadline: float, on_event: Observer | None) -> models.ChatTurn:
        reply: Reply = None
        with closing(steps):
            while True:
                try:
                    step = steps.send(reply)
                except StopIteration as end:
                    return cast("models.ChatTurn", end.value)
                match step:
                    case ReadHistory():
                        try:
                            reply = self._send(self._calls.history(asked), calls.patience(deadline))
                        except exceptions.LlamaCloudError as problem:
                            reply = problem
                    case Post():
                        reply = self._post(asked, step.position, deadline, on_event)
                    case Pause():
                        time.sleep(step.seconds)
                        reply = None

    def _post(self, asked: Question, position: int, deadline: float, on_event: Observer | None) -> Outcome:
        folder = TurnFolder(asked.session_id, asked.prompt, index_ids=asked.index_ids, position=position)
        try:
            with closing(self._stream(asked, deadline)) as events:
                for event in events:
                    folder.add(calls.checked(event, asked))
                    if on_event is not None:
                        on_event(event)
                    if folder.finished:
                        break
        except exceptions.LlamaCloudError as problem:
            return calls.outcome(folder, problem)
        return calls.outcome(folder, calls.cut_stream(asked.session_id))

    def _stream(self, asked: Question, deadline: float) -> Generator[models.Event, None, None]:
        call = self._calls.stream(asked)
        accepted: bool | None = None
        try:
            with self._answer(call, deadline) as response:
                if not calls.is_event_stream(response):
                    reply = replies.Reply(response.status_code, response.headers, self._read(call, response, deadline))
                    replies.raise_for_status(call, reply, self.config)
                    raise replies.not_a_stream(call, reply, self.config)
                accepted = True
                yield from read_events(self._chunks(response, deadline), asked.session_id, (self.config.api_key,))
        except replies.TRANSPORT_PROBLEMS as problem:
            raise replies.connection_error(call, problem, self.config, accepted=accepted) from None

    def _pages(
        self, endpoint: endpoints.Endpoint, page_size: int | None, project_id: str | None, organization_id: str | None
    ) -> Iterator[Any]:
        pages = calls.Pages(endpoint)
        while pages.more:
            call = self._calls.page(endpoint, page_size, pages.token, project_id, organization_id)
            page = self._send(call)
            yield from page.items
            pages.turn(page.next_page_token)

    def _send(self, call: endpoints.Call, patience: float | None = None) -> Any:
        doubtful = False
        budget = replaying.Budget(self.config, patience)
        for attempt in Retrying(**replaying.policy(call, self.config, budget)):
            with attempt:
                try:
                    return replies.decode(call, self._attempt(call, budget), self.config)
                except exceptions.RequestRefusedError as problem:
                    if doubtful and replaying.shows_success(call, problem):
                        return None
                    raise
                except (exceptions.LlamaCloudConnectionError, exceptions.ServerError):
                    doubtful = True
                    raise
        raise AssertionError("tenacity returns or raises")  # pragma: no cover  # for the type checker only

    def _attempt(self, call: endpoints.Call, budget: replaying.Budget) -> replies.Reply:
        try:
            with budget.spend() as deadline, self._answer(call, deadline) as response:
                return replies.Reply(response.status_code, response.headers, self._read(call, response, deadline))
        except replies.TRANSPORT_PROBLEMS as problem:
            raise replies.connection_error(call, problem, self.config) from None

    @contextmanager
    def _answer(self, call: endpoints.Call, deadline: float) -> Iterator[httpx.Response]:
        request = self._http.build_request(**calls.request(call, self.config, deadline))
        with until(deadline):
            response = self._http.send(request, stream=True)
        with closing(response):
            yield response

    def _chunks(self, response: httpx.Response, deadline: float) -> Generator[bytes, None, None]:
        unpacker = Unpacker(response.headers.get("content-encoding"))
        raw = response.iter_raw()
        while True:
            with until(deadline):
                chunk = next(raw, None)
            if chunk is None:
                break
            calls.left(deadline)
            yield from unpacker.feed(chunk)
        unpacker.end()

    def _read(self, call: endpoints.Call, response: httpx.Response, deadline: float) -> bytes:
        body = bytearray()
        with closing(self._chunks(response, deadline)) as chunks:
            for chunk in chunks:
                body += chunk
                if len(body) > replies.MAX_BODY:
                    raise replies.too_large(call, self.config)
        return bytes(body)
