# Generated from client/aio.py by `make sync`; do not edit by hand.
"""The synchronous client: the operations of the API, and turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack, cast

from airflow_provider_llamachat import exceptions, models
from airflow_provider_llamachat.arguments import SharedAccess, seconds
from airflow_provider_llamachat.client import calls, endpoints, http, responses, retry
from airflow_provider_llamachat.client.sender_sync import Sender
from airflow_provider_llamachat.client.throttle import Passage

if TYPE_CHECKING:
    from airflow_provider_llamachat.conversation.question import Question, Scope, Trace
    from airflow_provider_llamachat.conversation.steps import Outcome, Post, Result

    Keep = Callable[[Trace, bool], None]
    """Stores a trace for later attempts. The flag says that a post follows, which must not leave if this raises an error."""

Observer = Callable[["models.Event"], None]
"""Called with each event of a turn as it arrives."""


class LlamaCloudClient(Sender):
    """LlamaCloud's chat API for synchronous code. Use it as a context manager, or close it.

    Each method takes ``project_id`` and ``organization_id`` (UUIDs) to override the configured ones for that call. All raise
    the classes of :mod:`airflow_provider_llamachat.exceptions`; see the API reference of each operation at
    https://developers.llamaindex.ai/reference/.
    """

    @cached_property
    def _calls(self) -> calls.Calls:
        return calls.Calls(self.config)

    def create_session(
        self, index_ids: list[str] | None = None, *, shared_access: SharedAccess | None = None, **scope: Unpack[Scope]
    ) -> models.SessionSummary:
        """Create a chat session that is bound to at most ten indexes or to none (POST /api/v1/chat).

        :param shared_access: what the session's share link grants, ``query`` or ``read_only``; None means the server's default.
        """
        call = self._calls.create(index_ids, shared_access, scope)
        return cast("models.SessionSummary", self._send(call))

    def get_session(self, session_id: str, **scope: Unpack[Scope]) -> models.Session:
        """Read a session with its whole history (GET /api/v1/chat/{session_id})."""
        call = self._calls.session(endpoints.GET_SESSION, session_id, scope)
        return cast("models.Session", self._send(call))

    def get_session_summary(self, session_id: str, **scope: Unpack[Scope]) -> models.SessionSummary:
        """Read a session without its history (GET /api/v1/chat/{session_id}/summary)."""
        call = self._calls.session(endpoints.GET_SESSION_SUMMARY, session_id, scope)
        return cast("models.SessionSummary", self._send(call))

    def list_sessions(self, *, page_size: int | None = None, **scope: Unpack[Scope]) -> Iterator[models.SessionSummary]:
        """Iterate over the project's sessions, and fetch pages as needed (GET /api/v1/chat).

        :param page_size: number of sessions per page; None means the server's default.
        """
        for item in self._pages(endpoints.LIST_SESSIONS, page_size, scope):
            yield item

    def delete_session(self, session_id: str, **scope: Unpack[Scope]) -> None:
        """Delete a session (DELETE /api/v1/chat/{session_id}).

        :raises NotFoundError: the session does not exist. Not raised if an earlier attempt of the same call deleted it and the
            response names the session.
        """
        self._send(self._calls.session(endpoints.DELETE_SESSION, session_id, scope))

    def confirm(
        self, problem: exceptions.RequestRefusedError, *, patience: float | None = None, **scope: Unpack[Scope]
    ) -> None:
        """Return if a refusal can be believed. A vague one may come from a wrong Base URL or a proxy, so the sessions are listed first.

        :param patience: maximum duration in seconds; None means the one of any call.
        :raises RequestRefusedError: ``problem``, because the list was refused as well; or the API's refusal of the key.
        :raises LlamaCloudError: the list failed in a way that a retry may solve.
        """
        if problem.is_vague:
            try:
                self._send(self._calls.page(endpoints.LIST_SESSIONS, 1, None, scope), patience)
            except exceptions.RequestRefusedError as refusal:
                if isinstance(refusal, exceptions.AuthenticationError | exceptions.PaymentRequiredError):
                    raise
                raise problem from refusal

    def get_known_session(
        self, session_id: str, *, patience: float | None = None, **scope: Unpack[Scope]
    ) -> models.Session:
        """Read a session that may have an answer that was paid for.

        A refusal that is not LlamaCloud's proves nothing. A bare "Not Found" counts only if it is repeated while the API responds.

        :param patience: maximum duration in seconds; None means the one of any call.
        :raises RequestRefusedError: LlamaCloud refused.
        :raises LlamaCloudConnectionError: a proxy may have refused.
        """
        call = self._calls.session(endpoints.GET_SESSION, session_id, scope)
        began, was_missing = time.time(), False
        try:
            try:
                return cast("models.Session", self._send(call, patience))
            except exceptions.RequestRefusedError as problem:
                if not problem.is_vague:
                    raise
                self.confirm(problem, patience=calls.time_left(patience, began), **scope)
                was_missing = isinstance(problem, exceptions.NotFoundError)
            self.pause(retry.pause(1))
            return cast("models.Session", self._send(call, calls.time_left(patience, began)))
        except exceptions.RequestRefusedError as problem:
            if not problem.is_vague or (was_missing and isinstance(problem, exceptions.NotFoundError)):
                raise
            raise exceptions.LlamaCloudConnectionError(
                str(problem), status=problem.status, request_id=problem.request_id, session_id=session_id
            ) from problem

    def list_projects(
        self, *, project_name: str | None = None, organization_id: str | None = None
    ) -> list[models.Project]:
        """List the projects the key can see (GET /api/v1/projects)."""
        return cast("list[models.Project]", self._send(self._calls.projects(project_name, organization_id)))

    def get_project(self, project_id: str, *, organization_id: str | None = None) -> models.Project:
        """Read a project (GET /api/v1/projects/{project_id})."""
        return cast("models.Project", self._send(self._calls.project(project_id, organization_id)))

    def list_indexes(
        self, *, page_size: int | None = None, max_pages: int | None = None, **scope: Unpack[Scope]
    ) -> Iterator[models.Index]:
        """Iterate over the project's indexes, and fetch pages as needed (GET /api/v1/indexes).

        :param page_size: number of indexes per page; None means the server's default.
        :param max_pages: stop after this number of pages; None means after the last one.
        """
        for item in self._pages(endpoints.LIST_INDEXES, page_size, scope, max_pages):
            yield item

    def get_index(self, index_id: str, *, expand_sync: bool = False, **scope: Unpack[Scope]) -> models.Index:
        """Read an index (GET /api/v1/indexes/{index_id}); ``expand_sync`` also requests ``sync_in_progress``."""
        call = self._calls.index(endpoints.GET_INDEX, index_id, scope, expand=expand_sync)
        return cast("models.Index", self._send(call))

    def sync_index(self, index_id: str, **scope: Unpack[Scope]) -> bool:
        """Start a sync of an index (POST /api/v1/indexes/{index_id}/sync).

        :returns: True if this call started the sync, False if one was already running (409).
        """
        try:
            self._send(self._calls.index(endpoints.SYNC_INDEX, index_id, scope))
        except exceptions.ConflictError:
            return False
        return True

    def cancel_sync(self, index_id: str, **scope: Unpack[Scope]) -> bool:
        """Cancel the running sync of an index, whoever started it (POST /api/v1/indexes/{index_id}/sync/cancel).

        :returns: True if a sync was cancelled, False if none was running (409).
        """
        try:
            self._send(self._calls.index(endpoints.CANCEL_SYNC, index_id, scope))
        except exceptions.ConflictError:
            return False
        return True

    def get_attachment_url(self, source_id: str, attachment_name: str, **scope: Unpack[Scope]) -> models.AttachmentUrl:
        """Get a URL from which an attachment of a file, such as the picture of a page, can be downloaded for some time
        (GET /api/v1/beta/attachments/{attachment_name}). The URL is a secret: whoever has it can read the attachment.

        :param source_id: id of the file, as in the ``attachment`` of a source.
        """
        return cast("models.AttachmentUrl", self._send(self._calls.attachment(source_id, attachment_name, scope)))

    def stream_message(
        self,
        session_id: str,
        prompt: str,
        *,
        index_ids: list[str] | None = None,
        require_all_indexes: bool = False,
        turn_timeout: float | timedelta = calls.DEFAULT_TURN_TIMEOUT,
        **scope: Unpack[Scope],
    ) -> Iterator[models.Event]:
        """Post a prompt once and iterate over the events of its turn as they arrive, deltas included.

        This sends one POST and does not recover from errors; :meth:`send_message` does. The last event is a ``StopEvent``, whose
        ``is_error`` tells whether the turn failed.

        :param index_ids: indexes the turn may use; None means those the session is bound to.
        :param turn_timeout: maximum duration of the stream, in seconds or as a timedelta.
        :raises InvalidArgumentError: an argument is invalid; nothing was sent.
        :raises ChatTurnInterruptedError: the stream ended without a ``StopEvent``.
        """
        question = calls.question(session_id, prompt, index_ids, require_all_indexes=require_all_indexes, scope=scope)
        return self._events(question, seconds(turn_timeout, "turn_timeout"))

    def _events(self, question: Question, turn_timeout: float) -> Generator[models.Event, None, None]:
        deadline = calls.end_of(turn_timeout)
        if not question.index_ids:
            question, _ = calls.completed(question, None, self._send(self._calls.history(question)))
        with closing(self.stream(question, deadline)) as events:
            for event in events:
                yield event
                if isinstance(event, models.StopEvent):
                    return
        raise calls.ended_early(question.session_id)

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
        **scope: Unpack[Scope],
    ) -> models.ChatTurn:
        """Ask and return the finished turn. It is paid for once: after an error the session's history shows what happened.

        :param index_ids: indexes the turn may use; None means those the session is bound to.
        :param baseline: number of turns in the session before the question was first asked; None means the current number.
        :param resume: the question may already have been asked, so its turn is looked for before posting.
        :param accepted: with ``resume``, the server is known to have accepted the question. It is then not posted again just because
            the history does not show it.
        :param ask_again: with ``resume``, post once more if the earlier turn stopped partway.
        :param turn_timeout: maximum duration of the turn, in seconds or as a timedelta; ``deadline`` (epoch seconds) overrides it.
        :param on_event: called with each event as it arrives. Not called if the answer is read from the history.
        """
        from airflow_provider_llamachat.conversation.question import Trace

        question = calls.question(session_id, prompt, index_ids, require_all_indexes=require_all_indexes, scope=scope)
        end = calls.end_of(turn_timeout, deadline)
        trace = None if baseline is None else Trace(baseline)
        if trace is None or not question.index_ids:
            read = self.get_known_session if resume else self.get_session
            session = read(session_id, **scope)
            with responses.redacting(self.config):
                question, trace = calls.completed(question, trace, session)
        if resume:
            trace = replace(trace, intended_at=time.time(), accepted=accepted)
        return self.answer(question, trace, deadline=end, ask_again=ask_again, on_event=on_event)

    def answer(
        self,
        question: Question,
        trace: Trace,
        *,
        deadline: float,
        ask_again: bool = False,
        look_first: bool = False,
        keep: Keep | None = None,
        on_event: Observer | None = None,
    ) -> models.ChatTurn:
        """Answer a question that may already have been asked; see :func:`~..conversation.ask.ask`.

        :param deadline: epoch seconds at which waiting for the turn ends.
        :param keep: stores what is known about the turn for later attempts.
        """
        from airflow_provider_llamachat.conversation.ask import ask
        from airflow_provider_llamachat.conversation.interruption import interrupted
        from airflow_provider_llamachat.conversation.steps import Pause, Post, ReadHistory, Remember

        limits = calls.limits(self.config, deadline)
        steps = ask(question, trace, limits, ask_again=ask_again, look_first=look_first)
        result: Result = None
        with responses.redacting(self.config), closing(steps):
            while True:
                try:
                    step = steps.send(result)
                except StopIteration as end:
                    return cast("models.ChatTurn", end.value)
                if self.is_stopped and not isinstance(step, Remember):
                    raise interrupted(question, "killed", None, trace)
                result = None
                match step:
                    case Remember():
                        trace = step.trace
                        if keep is not None:
                            keep(trace, step.is_intent)
                    case ReadHistory():
                        try:
                            result = self.read_history(question, deadline, is_in_doubt=trace.is_open)
                        except exceptions.LlamaCloudError as problem:
                            result = problem
                    case Post():
                        result = self._ask_once(question, step, deadline, keep, on_event)
                        trace = result.trace
                    case Pause():
                        self.pause(step.seconds)

    def _ask_once(
        self, question: Question, step: Post, deadline: float, keep: Keep | None, on_event: Observer | None
    ) -> Outcome:
        from airflow_provider_llamachat.conversation.history import TurnFolder
        from airflow_provider_llamachat.conversation.steps import Outcome

        folder = TurnFolder(question.session_id, question.prompt, index_ids=question.index_ids, position=step.position)
        trace = step.trace
        problem: exceptions.LlamaCloudError | None = None
        try:
            with closing(self.stream(question, deadline, folder.lose)) as events:
                for event in events:
                    known = trace.after(event)
                    if known is not trace:
                        calls.compare(question, known, trace, event)
                        trace = known
                        if keep is not None:
                            keep(trace, False)
                    folder.add(event)
                    if on_event is not None:
                        on_event(event)
                    if folder.finished:
                        break
        except exceptions.LlamaCloudError as failure:
            problem = failure
        turn = folder.turn()
        missing = None if turn.finished else problem or calls.without_stop(question)
        return Outcome(trace, turn, missing, is_damaged=folder.is_damaged)

    def read_history(self, question: Question, deadline: float, *, is_in_doubt: bool) -> models.Session:
        """Read the session of a question whose turn ends at ``deadline``."""
        patience = calls.history_patience(deadline)
        if not is_in_doubt:
            return cast("models.Session", self._send(self._calls.history(question), patience))
        return self.get_known_session(question.session_id, patience=patience, **question.scope)

    def stream(
        self, question: Question, deadline: float, on_lost: Callable[[], None] | None = None
    ) -> Generator[models.Event, None, None]:
        """Post a prompt once, on a new connection, and yield the events of its turn.

        :param on_lost: called for each event that is malformed, and skipped, or whose text was not UTF-8.
        """
        from airflow_provider_llamachat.client.sse import EventReader

        call = self._calls.stream(question)
        accepted: bool | None = None
        try:
            with (
                Passage(self.throttle, deadline) as passage,
                closing(self._begin(self._for_one_request(), call, deadline)) as response,
            ):
                passage.answered(response.status_code, responses.retry_after(response.headers))
                if not http.is_event_stream(response):
                    body = self._read(call, response, deadline)
                    reply = responses.Reply(response.status_code, response.headers, body)
                    responses.raise_for_status(call, reply, self.config)
                    raise responses.not_a_stream(call, reply, self.config)
                accepted = True
                reader = EventReader(question.session_id, (self.config.api_key,), on_lost)
                with closing(self._chunks(response, deadline)) as chunks:
                    for chunk in chunks:
                        for event in reader.feed(chunk):
                            yield event
        except responses.TRANSPORT_PROBLEMS as problem:
            raise responses.connection_error(call, problem, self.config, accepted=accepted) from None

    def _pages(
        self, endpoint: endpoints.Endpoint, page_size: int | None, scope: Scope, max_pages: int | None = None
    ) -> Iterator[Any]:
        token: str | None = None
        seen: set[str] = set()
        while max_pages is None or len(seen) < max_pages:
            page = self._send(self._calls.page(endpoint, page_size, token, scope))
            for item in page.items:
                yield item
            if not page.next_page_token:
                return
            token = calls.next_page(endpoint, page.next_page_token, seen)
