"""Deletes the sessions that a batch opened, and names those that it can not or may not delete."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow_provider_llamachat.exceptions import LlamaCloudError, NotFoundError

if TYPE_CHECKING:
    from airflow_provider_llamachat.batch.preparing import Options
    from airflow_provider_llamachat.client import AsyncLlamaCloudClient

NAMED = 20
"""Ids that one log line names at the most."""


async def delete_sessions(
    client: AsyncLlamaCloudClient, opened: set[str], wanted: set[str], options: Options, logger: Any
) -> int:
    """Delete ``opened`` but for ``wanted``; return how many were there to delete. Problems are logged, not raised."""
    pending, left = iter(sorted(opened - wanted)), list(opened & wanted)
    deleted, told = 0, False

    async def delete_some() -> None:
        nonlocal deleted, told
        for session_id in pending:
            try:
                await client.delete_session(session_id, **options.scope)
            except NotFoundError:
                continue  # an earlier try, or somebody else, deleted it
            except LlamaCloudError as problem:
                left.append(session_id)
                if not told:
                    told = True
                    logger.warning("A session could not be deleted: %s", problem)
            else:
                deleted += 1

    await asyncio.gather(*(delete_some() for _ in range(options.max_concurrency)))
    if left:
        more = " …" if len(left) > NAMED else ""
        logger.warning("%d session(s) were not deleted: %s%s", len(left), ", ".join(sorted(left)[:NAMED]), more)
    return deleted
