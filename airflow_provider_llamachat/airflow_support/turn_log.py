"""Makes the task log read like the conversation: the question, tool calls, the answer line by line, its sources, and its cost."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat import models
from airflow_provider_llamachat.evidence import Source, cited, note, passages
from airflow_provider_llamachat.redaction import excerpt

if TYPE_CHECKING:
    from airflow_provider_llamachat.conversation.question import Question

LINE = 160
"""Length from which a line of the answer is logged before it is complete."""
LATE = 5.0
"""Seconds after which the whole words of an incomplete line are logged, so that a slow answer is visible."""
MAX_LINES = 2_000
"""Maximum number of lines that are logged of an answer, and of lines about tools."""
MAX_CITATIONS = 20
"""Maximum number of documents that are logged as sources."""


class TurnLog:
    """Logs a turn. Keeps at most one line in memory.

    :param logger: the logger (``self.log`` of an operator).
    :param shows_texts: whether the question, tool calls, the answer and the names of sources are logged.
    """

    def __init__(self, logger: Any, *, shows_texts: bool = True) -> None:
        self._log = logger
        self._shows_texts = shows_texts
        self._line = ""
        self._lines = 0
        self._tool_lines = 0
        self._since = time.monotonic()
        self._streamed = False
        self._thinking = False
        self._began = False
        self._ended = False

    def asks(self, question: Question) -> None:
        """Log the question, its session and its indexes."""
        place = f"session {excerpt(question.session_id, limit=100)}, indexes {excerpt(', '.join(question.index_ids), limit=300)}"
        prompt = question.prompt
        shown = excerpt(prompt, limit=300) if self._shows_texts else f"{len(prompt)} characters"
        self._log.info("Question in %s: %s", place, shown)

    def defers(self, deadline: float) -> None:
        """Log until when the task waits.

        :param deadline: epoch seconds.
        """
        try:
            until = f"until {datetime.fromtimestamp(deadline, UTC).isoformat(sep=' ', timespec='seconds')} at most"
        except (ValueError, OverflowError, OSError):  # turn_timeout has no maximum, but calendars have
            until = "without a limit"
        self._log.info("Waiting for the answer in the triggerer, %s.", until)

    def __call__(self, event: models.Event) -> None:
        """Log the event, or keep it until its line is complete."""
        self._began = True
        self._ended = self._ended or isinstance(event, models.StopEvent)
        if not self._shows_texts:
            return
        match event:
            case models.TextDeltaEvent():
                self._streamed = True
                self._add(event.content)
            case models.TextEvent():
                if not self._streamed:
                    self._add(event.content)
                self._flush()
                self._streamed = False
            case models.ThinkingDeltaEvent() if not self._thinking:
                self._thinking = True
                self._log.info("thinking …")
            case models.ToolCallEvent():
                self._flush()
                self._thinking = False
                self._called(event.name, event.arguments)
            case models.ToolResultEvent():
                self._returned(event.name, event.result)
            case models.StopEvent():
                self._flush()

    def answered(self, turn: models.ChatTurn, *, has_posted: bool) -> None:
        """Log an answer that was read from the session's history. Does nothing if its stream was logged to its end.

        :param has_posted: whether this process posted the prompt. Otherwise the answer is adopted.
        """
        if self._ended:
            return
        self._flush()
        if not has_posted:
            how = "The answer was adopted from the session's history. Nothing was asked again, so it cost nothing."
        elif self._began:
            how = "The stream of the answer was lost. The answer was read from the session's history."
        else:
            # The post was refused because the turn of an earlier attempt was running, or its response was lost.
            how = "The post returned no stream. The answer was read from the session's history. It was paid for once."
        self._log.info(how)
        if self._shows_texts:
            for tool in turn.tools:
                self._called(tool.name, tool.arguments)
                if tool.finished:
                    self._returned(tool.name, tool.result)
            self._lines = 0
            self._add(turn.answer)
            self._flush()

    def ends(self, turn: models.ChatTurn, sources: list[Source]) -> None:
        """Log the documents that the answer is based on, and what it cost.

        :param sources: the sources as they are passed on.
        """
        if self._shows_texts:
            documents = cited(sources)
            for document in documents[:MAX_CITATIONS]:
                self._log.info("source: %s", excerpt(document, limit=300))
            if len(documents) > MAX_CITATIONS:
                self._log.info("source: … (%d documents in all)", len(documents))
        if (left_out := note(sources)) is not None:
            self._log.warning("%s", left_out)
        usage = turn.usage
        seconds = "an unknown time" if usage.duration_ms is None else f"{float(usage.duration_ms) / 1000:.1f} s"
        count = sum("note" not in source for source in sources)
        self._log.info(
            "Answered with %d characters from %s, %s input and %s output tokens, in %s. Session: %s.",
            len(turn.answer),
            _counted(count, "source"),
            usage.total_input_tokens,
            usage.total_output_tokens,
            seconds,
            turn.session_id,
        )

    def _called(self, name: str, arguments: Any) -> None:
        if self._may_log_tool():
            self._log.info("tool call %s %s", excerpt(name, limit=60), _brief(arguments))

    def _returned(self, name: str, result: Any) -> None:
        if self._may_log_tool():
            self._log.info("Tool %s returned %s", excerpt(name, limit=60), _counted(len(passages(result)), "passage"))

    def _may_log_tool(self) -> bool:
        self._tool_lines += 1
        if self._tool_lines == MAX_LINES + 1:
            self._log.info("tool … (only the first %d lines about tools are logged)", MAX_LINES)
        return self._tool_lines <= MAX_LINES

    def _add(self, text: str) -> None:
        if not self._line:
            self._since = time.monotonic()
        pending = self._line + text
        *whole, rest = pending.splitlines() if pending and pending[-1] not in "\r\n" else [*pending.splitlines(), ""]
        for line in whole:
            self._write(self._write_words(line))
        self._line = self._write_words(rest)
        if self._line and time.monotonic() - self._since > LATE:
            words, blank, rest = self._line.rpartition(" ")
            if blank:
                self._write(words)
                self._line = rest

    def _write_words(self, line: str) -> str:
        """Log what exceeds a line of the log, and return the rest."""
        # Uses positions, so that the rest of a large delta is not copied for each line.
        begin = 0
        while len(line) - begin > LINE:
            cut = line.rfind(" ", begin + 1, begin + LINE)
            if cut < 0:  # before a parameter of a URL, because half a signature is not recognized as one
                cut = max(line.rfind(mark, begin + 1, begin + LINE) for mark in "?&")
            cut = begin + LINE if cut < 0 else cut
            self._write(line[begin:cut])
            begin = cut
            while line.startswith(" ", begin):
                begin += 1
        return line[begin:]

    def _flush(self) -> None:
        if self._line:
            self._write(self._line)
            self._line = ""

    def _write(self, line: str) -> None:
        self._since = time.monotonic()
        if not line.strip():
            return
        self._lines += 1
        if self._lines <= MAX_LINES:
            self._log.info("| %s", excerpt(line, limit=LINE))
        elif self._lines == MAX_LINES + 1:
            self._log.info("| … (only the first %d lines of an answer are logged)", MAX_LINES)


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _brief(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        text = type(value).__name__
    return excerpt(text, limit=200)
