"""Everything this provider raises, so that one ``except`` clause can be as wide or as narrow as a Dag needs.

::

    LlamaCloudError                          the root (an AirflowException)
    ├── LlamaCloudConfigError            [F] the connection or an argument is wrong; no request was sent
    │   ├── InvalidApiKeyError           [F] the key is missing, masked (``***``) or not printable ASCII
    │   └── InvalidArgumentError         [F] a prompt, a session id, an index list, a UUID, a number … is not usable (a ValueError)
    ├── LlamaCloudTaskStateError             Airflow could not keep what a retry has to know; nothing was sent
    ├── LlamaCloudConnectionError            no complete answer: DNS, TLS, proxy, connect, reset, truncated body
    │   └── LlamaCloudTimeoutError           no answer in time
    ├── LlamaCloudProtocolError              an answer that is not LlamaCloud's: a redirect, HTML, broken JSON
    ├── LlamaCloudStatusError                the server answered with an error status
    │   ├── RequestRefusedError          [F] a refusal that no retry will change, by LlamaCloud or by what answers in its place
    │   │   ├── AuthenticationError      [F] 401
    │   │   ├── PaymentRequiredError     [F] 402
    │   │   ├── PermissionDeniedError    [F] 403
    │   │   ├── NotFoundError            [F] 404
    │   │   └── UnprocessableError       [F] 422
    │   ├── ConflictError                    409: busy now
    │   ├── RateLimitError                   429
    │   └── ServerError                      5xx
    ├── ChatTurnError                        about one turn
    │   ├── ChatTurnFailedError              the server ended the turn with ``is_error``
    │   └── ChatTurnInterruptedError         the turn's end was not seen, and asking again might pay for it twice
    ├── IndexStateError                      about an index
    │   ├── IndexFailedError             [F] the index's own status is ``failed``
    │   └── IndexNotReadyError               the deadline passed before all indexes were ready
    └── ChatBatchError                       about a whole batch (some items failed, or nothing was started)
        └── ChatBatchRefusedError        [F] every prompt of a batch was refused, and would be refused again

``[F]`` marks the classes that also are Airflow's ``AirflowFailException``: the task fails at once and uses up no retry, because
the same request would be refused again. All others leave the decision to the task's ``retries``.

Each carries ``status`` (HTTP status or None), ``request_id`` (the server's, for a support ticket), ``session_id`` and
``retryable`` (would the same call have a chance later?).
"""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_llamachat.redaction import one_line, scrub


class LlamaCloudError(AirflowException):
    """Root of all errors of this provider.

    :param message: what happened, where (host, project), and what to do about it. Kept as one line of at most
        :data:`~.redaction.MAX_MESSAGE` characters, whatever it quotes, and without anything that looks like a key.
    :param status: the HTTP status of the answer, None when there was none.
    :param request_id: the server's id of the request, None when it gave none.
    :param session_id: the chat session concerned, None when there is none.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        session_id: str | None = None,
    ) -> None:
        super().__init__(one_line(scrub(message, ())))
        self.status = status
        self.request_id = request_id
        self.session_id = session_id

    def __reduce__(self) -> tuple[Any, ...]:
        # Executors and triggerers move exceptions between processes; AirflowException's own form would lose the attributes.
        return (type(self), self.args, self.__dict__.copy())


class LlamaCloudConfigError(LlamaCloudError, AirflowFailException):
    """The connection or an argument cannot work as it is. No request was sent."""


class InvalidApiKeyError(LlamaCloudConfigError):
    """The connection's password cannot be an API key. The message never contains its value."""


class InvalidArgumentError(LlamaCloudConfigError, ValueError):
    """An argument is not usable; the message names the argument and what it has to be. No request was sent."""


class LlamaCloudTaskStateError(LlamaCloudError):
    """Airflow's task state store could not keep that a prompt was about to be sent, so it was not sent."""

    retryable = True


class LlamaCloudConnectionError(LlamaCloudError):
    """The network gave no complete answer.

    :param accepted: False when the server provably never got the request (the connection was not even made), None when
        nobody can tell from here.
    """

    retryable = True

    def __init__(self, message: str, *, accepted: bool | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.accepted = accepted


class LlamaCloudTimeoutError(LlamaCloudConnectionError):
    """Connecting, a silence, or the whole call took longer than allowed."""


class LlamaCloudProtocolError(LlamaCloudError):
    """What answered is not LlamaCloud's API: a redirect, an HTML page, broken JSON, an answer beyond all bounds.

    :param accepted: True when a turn's stream had begun, so that the server is known to have taken the prompt.
    """

    retryable = True

    def __init__(self, message: str, *, accepted: bool | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.accepted = accepted


class LlamaCloudStatusError(LlamaCloudError):
    """The server answered with an error status."""


class RequestRefusedError(LlamaCloudStatusError, AirflowFailException):
    """The request was refused, and would be refused again.

    This class itself stands for a 4xx that has no class of its own, and for any 4xx that does not come from LlamaCloud's API (an HTML
    page, a path that the API knows): such a 404 is no proof that a session does not exist.
    """


class AuthenticationError(RequestRefusedError):
    """401: the API key is not valid at this host. Keys belong to one region."""


class PaymentRequiredError(RequestRefusedError):
    """402: the organization has no credits left."""


class PermissionDeniedError(RequestRefusedError):
    """403: the key is valid, but may not do this in this project or organization."""


class NotFoundError(RequestRefusedError):
    """404: no such session, index or project in this project."""


class ConflictError(LlamaCloudStatusError):
    """409: the session or index is busy; later it may not be."""

    retryable = True


class UnprocessableError(RequestRefusedError):
    """422: the server names the fields it does not accept."""


class RateLimitError(LlamaCloudStatusError):
    """429: too many requests.

    :param retry_after: seconds the server asked to wait, None when it did not say.
    """

    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.retry_after = retry_after


class ServerError(LlamaCloudStatusError):
    """5xx: the server, or something in front of it, failed.

    :param retry_after: seconds the server asked to wait, None when it did not say.
    """

    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.retry_after = retry_after


class ChatTurnError(LlamaCloudError):
    """A chat turn did not give an answer.

    :param usage: what the turn had cost when it ended, as far as the server said (keys as in the ``usage`` XCom), or None.
    """

    retryable = True

    def __init__(self, message: str, *, usage: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.usage = usage


class ChatTurnFailedError(ChatTurnError):
    """The server ended the turn with ``is_error``. A task retry asks again: there is no answer that could be paid for twice."""


class ChatTurnInterruptedError(ChatTurnError):
    """The turn was (or may have been) accepted, but its end was not seen. The prompt was not sent again.

    A task retry is safe: it reads the session's history first and adopts the answer if it is there by then.

    :param reason: ``stalled`` (in the history, but no longer growing), ``deadline`` (``turn_timeout`` passed), ``vanished``
        (accepted, yet not in the history), ``overtaken`` (another turn began before this one ended), ``foreign`` (somebody
        else's turn stands where ours should be), ``unreadable`` (the history could not be read), ``unasked`` (``turn_timeout`` passed
        before the server took the prompt), ``killed`` (the task was stopped).
    :param accepted: True when the server was seen to take the prompt, False when nobody can tell, or when it did not.
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
    """The index's build failed; the message carries the index's own error text."""


class IndexNotReadyError(IndexStateError):
    """The deadline passed before all indexes were ready."""

    retryable = True


class ChatBatchError(LlamaCloudError):
    """A batch ended with failed items, or its results or records could not be kept."""

    retryable = True


class ChatBatchRefusedError(ChatBatchError, AirflowFailException):
    """Every prompt of a batch was refused, and would be refused again."""

    retryable = False
