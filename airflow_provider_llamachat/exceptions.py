"""All exceptions that this provider raises.

::

    LlamaCloudError                          the root (an AirflowException)
    ├── LlamaCloudConfigError            [F] the connection or an argument is wrong; no request was sent
    │   ├── InvalidApiKeyError           [F] the key is missing, masked (``***``) or not printable ASCII
    │   └── InvalidArgumentError         [F] a prompt, a session id, an index list, a UUID, a number … is invalid (a ValueError)
    ├── LlamaCloudTaskStateError             Airflow's task state store is unavailable; nothing was sent
    ├── LlamaCloudConnectionError            no complete answer: DNS, TLS, proxy, connect, reset, truncated body
    │   └── LlamaCloudTimeoutError           no answer in time
    ├── LlamaCloudProtocolError              the response is not LlamaCloud's: a redirect, HTML, invalid JSON
    ├── LlamaCloudStatusError                the server answered with an error status
    │   ├── RequestRefusedError          [F] the request was refused, and a retry would be refused too
    │   │   ├── AuthenticationError      [F] 401
    │   │   ├── PaymentRequiredError     [F] 402
    │   │   ├── PermissionDeniedError    [F] 403
    │   │   ├── NotFoundError            [F] 404
    │   │   └── UnprocessableError       [F] 422
    │   ├── ConflictError                    409: busy now
    │   │   └── SessionBusyError             another turn is running in the session
    │   ├── RateLimitError                   429
    │   └── ServerError                      5xx
    ├── ChatTurnError                        about one turn
    │   ├── ChatTurnFailedError              the server ended the turn with ``is_error``
    │   └── ChatTurnInterruptedError         the end of the turn was not seen; asking again might pay for it twice
    ├── IndexStateError                      about an index
    │   ├── IndexFailedError             [F] the index's own status is ``failed``
    │   └── IndexNotReadyError               the deadline passed before all indexes were ready
    ├── TranscriptError                      a transcript could not be written
    ├── BudgetReachedError               [F] ``max_total_tokens`` or ``max_turns`` is used up; nothing was asked
    └── ChatBatchError                       about a whole batch (too few answers, or nothing was started)
        └── ChatBatchRefusedError        [F] too few prompts of a batch were answered, and a retry would answer no more

``[F]`` marks the classes that are also an ``AirflowFailException``. The task fails immediately and does not use up a retry,
because the same request would be refused again. For all other classes, the task's ``retries`` apply.

Each exception has the attributes ``status`` (HTTP status or None), ``request_id`` (for a support ticket), ``session_id``,
``retry_after`` (seconds the server asked to wait, or None) and ``retryable`` (whether the same call may succeed later).
"""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_llamachat.redaction import one_line, scrub


class LlamaCloudError(AirflowException):
    """Root of all errors of this provider.

    :param message: the cause, what to do about it, and details such as host and project. It is reduced to one line of at
        most :data:`~.redaction.MAX_MESSAGE` characters, and anything that looks like an API key is removed.
    :param status: HTTP status of the response, or None if there was no response.
    :param request_id: the server's id of the request, or None.
    :param session_id: the chat session concerned, or None.
    :param accepted: whether the server accepted the prompt, if the class says so. None does not mean that it refused it.
    :param retry_after: seconds the server asked to wait, or None. Only errors that a retry may solve have it.
    """

    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        session_id: str | None = None,
        accepted: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(one_line(scrub(message, ())))
        self.status = status
        self.request_id = request_id
        self.session_id = session_id
        self.accepted = accepted
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        # Executors and triggerers move exceptions between processes; AirflowException's own form would lose the attributes.
        return (type(self), self.args, self.__dict__.copy())


class LlamaCloudConfigError(LlamaCloudError, AirflowFailException):
    """The connection or an argument is invalid. No request was sent."""


class InvalidApiKeyError(LlamaCloudConfigError):
    """The connection's password cannot be an API key. The message never contains its value."""


# A triggerer goes on without a trigger that cannot be made from its row only if the reason is a TypeError. It ends with any other.
class InvalidArgumentError(LlamaCloudConfigError, ValueError, TypeError):
    """An argument is invalid; the message names the argument and what it must be. No request was sent."""


class LlamaCloudTaskStateError(LlamaCloudError):
    """Airflow's task state store is unavailable, so a prompt was not sent."""

    retryable = True


class LlamaCloudConnectionError(LlamaCloudError):
    """No complete response was received, or a proxy may have refused to show a session that may have a paid answer.

    :ivar accepted: False if the server cannot have received the request (no connection was made), True if it had begun to
        respond, and None if this is not known.
    """

    retryable = True


class LlamaCloudTimeoutError(LlamaCloudConnectionError):
    """The connection, a read, or the whole call timed out."""


class LlamaCloudProtocolError(LlamaCloudError):
    """The response is not one of LlamaCloud's API: a redirect, an HTML page, invalid JSON, or a response that is too large.

    :ivar accepted: True if the server is known to have accepted the prompt, because it had begun to answer.
    """

    retryable = True


class LlamaCloudStatusError(LlamaCloudError):
    """The server answered with an error status."""


class RequestRefusedError(LlamaCloudStatusError, AirflowFailException):
    """The request was refused, and would be refused again.

    This class is raised for a 4xx status without a class of its own, and for any 4xx status that does not come from LlamaCloud's
    API (an HTML page, for example).

    :ivar is_vague: the response proves nothing, because it may come from a proxy: it is not JSON with ``detail``, or it says no more
        than "Not Found". For a prompt that may have an answer, it raises :class:`LlamaCloudConnectionError` instead.
    """

    is_vague: bool = False


class AuthenticationError(RequestRefusedError):
    """401: the API key is not valid at this host. A key works only in its own region."""


class PaymentRequiredError(RequestRefusedError):
    """402: the organization has no credits left."""


class PermissionDeniedError(RequestRefusedError):
    """403: the key is valid, but may not do this in this project or organization."""


class NotFoundError(RequestRefusedError):
    """404: no such session, index or project in this project."""


class ConflictError(LlamaCloudStatusError):
    """409: the session or index is busy. A later call may succeed."""

    retryable = True


class SessionBusyError(ConflictError):
    """409: another turn is running in the session. Sending a prompt waits for it, at most until ``turn_timeout``."""


class UnprocessableError(RequestRefusedError):
    """422: the server does not accept some fields of the request. The message names them."""


class RateLimitError(LlamaCloudStatusError):
    """429: too many requests."""

    retryable = True


class ServerError(LlamaCloudStatusError):
    """5xx: the server, or a proxy in front of it, failed."""

    retryable = True


class ChatTurnError(LlamaCloudError):
    """A chat turn ended without an answer.

    :param usage: usage that the server reported for the turn (keys as in the ``usage`` XCom), or None.
    """

    retryable = True

    def __init__(self, message: str, *, usage: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.usage = usage


class ChatTurnFailedError(ChatTurnError):
    """The server ended the turn with an error. A retry of the task asks again, because there is no answer to find."""


class ChatTurnInterruptedError(ChatTurnError):
    """The prompt was, or may have been, accepted, but the end of its turn was not seen. The prompt was not sent again.

    A retry of the task is safe: it reads the session's history first and uses the answer if it is there.

    :param reason: ``stalled`` (the answer stopped partway), ``deadline`` (``turn_timeout`` passed), ``vanished`` (accepted, but not in
        the history), ``overtaken`` (another turn began before this one ended), ``foreign`` (another prompt is in its place),
        ``unreadable`` (the history could not be read), ``unasked`` (``turn_timeout`` passed before the prompt was accepted),
        ``unread`` (the turn ended, but its answer could not be read in time), ``killed`` (the task was stopped).
    :param accepted: True if the server is known to have accepted the prompt.
    """

    def __init__(self, message: str, *, reason: str = "stalled", accepted: bool = False, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.reason = reason
        self.accepted = accepted


class IndexStateError(LlamaCloudError):
    """An index is not in the state the task needs.

    :param index_id: the index concerned.
    """

    def __init__(self, message: str, *, index_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.index_id = index_id


class IndexFailedError(IndexStateError, AirflowFailException):
    """The index's build failed. The message includes the index's own error message."""


class IndexNotReadyError(IndexStateError):
    """The deadline passed before all indexes were ready."""

    retryable = True


class BudgetReachedError(LlamaCloudError, AirflowFailException):
    """``max_total_tokens`` or ``max_turns`` is used up, so the prompt was not asked."""


class ChatBatchError(LlamaCloudError):
    """A batch ended with too few answers, or its results or records could not be stored."""

    retryable = True


class TranscriptError(LlamaCloudError):
    """A transcript could not be written. Nothing was deleted, and a file that was there before is unchanged."""

    retryable = True


class ChatBatchRefusedError(ChatBatchError, AirflowFailException):
    """Too few prompts of a batch were answered, and a retry would answer no more: the others were refused, or the budget is used up."""

    retryable = False
