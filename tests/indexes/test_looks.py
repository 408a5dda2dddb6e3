"""Triggers of one connection and project read their indexes together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from airflow_provider_llamachat import exceptions as errors
from airflow_provider_llamachat.client import AsyncLlamaCloudClient
from airflow_provider_llamachat.client.retry import no_backoff
from airflow_provider_llamachat.testing import INDEX_FILINGS, INDEX_HANDBOOK, Fault, LlamaCloudEmulator
from airflow_provider_llamachat.triggers import looks
from airflow_provider_llamachat.triggers.index import IndexReadyTrigger, IndexUpdatedTrigger
from airflow_provider_llamachat.triggers.looks import Watch, watching

pytestmark = pytest.mark.usefixtures("llamacloud_connection")

CONN = "llamacloud_default"


def endpoints(emulator: LlamaCloudEmulator) -> list[str | None]:
    return [request.endpoint for request in emulator.requests]


async def together(count: int, use: Callable[[list[Watch]], Awaitable[None]], **values: Any) -> None:
    """Use so many watches of one index each at the same time."""
    watches: list[Watch] = []
    done = asyncio.Event()

    async def hold(number: int) -> None:
        async with watching(CONN, [f"idx-{number}"], **values) as watch:
            watches.append(watch)
            await done.wait()

    tasks = [asyncio.create_task(hold(number)) for number in range(count)]
    await asyncio.sleep(0)
    try:
        await use(watches)
    finally:
        done.set()
        await asyncio.gather(*tasks)


async def sent(emulator: LlamaCloudEmulator, count: int) -> None:
    """Wait until the emulator got so many requests."""
    for _ in range(10_000):
        if len(emulator.requests) >= count:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"only {len(emulator.requests)} requests")


def add(emulator: LlamaCloudEmulator, count: int) -> None:
    for number in range(count):
        emulator.add_index(f"idx-{number}")


def test_twenty_watches_take_one_request(llamacloud_emulator: LlamaCloudEmulator) -> None:
    add(llamacloud_emulator, 20)

    async def use(watches: list[Watch]) -> None:
        for _ in range(3):
            found = await asyncio.gather(*(watch.look() for watch in watches))
            assert [index.id for (index,) in found] == [watch.index_ids[0] for watch in watches]
            await asyncio.gather(*(watch.pause(0.2) for watch in watches))

    asyncio.run(together(20, use))
    assert endpoints(llamacloud_emulator) == ["indexes"] * 3


@pytest.mark.long
def test_twenty_watchers_and_sensors_stay_within_a_small_plan(llamacloud_emulator: LlamaCloudEmulator) -> None:
    add(llamacloud_emulator, 20)
    for number in range(10, 20):
        llamacloud_emulator.set_index(f"idx-{number}", status="building")

    async def consume(trigger: Any) -> None:
        async for _ in trigger.run():
            pass

    async def watch() -> None:
        ends = time.time() + 1000
        triggers: list[Any] = [IndexUpdatedTrigger(index_id=f"idx-{number}", poke_interval=0.2) for number in range(10)]
        triggers += [
            IndexReadyTrigger(llamacloud_conn_id=CONN, index_ids=[f"idx-{number}"], deadline=ends, poke_interval=0.2)
            for number in range(10, 20)
        ]
        tasks = [asyncio.create_task(consume(trigger)) for trigger in triggers]
        # Each of them may send one request when it starts.
        await sent(llamacloud_emulator, 25)
        began = time.monotonic()
        await sent(llamacloud_emulator, 37)
        # Two reads are at least half an interval apart. Each trigger by itself would send these in a tenth of a second.
        assert time.monotonic() - began > 0.6
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(watch())
    assert set(endpoints(llamacloud_emulator)[25:]) == {"indexes"}


def test_an_index_that_is_gone_fails_only_its_own_watch(llamacloud_emulator: LlamaCloudEmulator) -> None:
    add(llamacloud_emulator, 4)

    async def use(watches: list[Watch]) -> None:
        found = await asyncio.gather(*(watch.look() for watch in watches), return_exceptions=True)
        assert [type(result) for result in found] == [list] * 4 + [errors.NotFoundError]

    asyncio.run(together(5, use))
    assert endpoints(llamacloud_emulator) == ["indexes", "index"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("status", endpoint="indexes", status=401), ["indexes"]),
        (Fault("status", endpoint="indexes", status=403), ["indexes"] + ["index"] * 3),
        (Fault("html", endpoint="indexes", status=200), ["indexes"] + ["index"] * 3),
    ],
    ids=["401", "403", "html"],
)
def test_a_list_that_cannot_be_read_leaves_the_single_reads(
    fault: Fault, expected: list[str], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    add(llamacloud_emulator, 3)
    llamacloud_emulator.inject(fault)

    async def use(watches: list[Watch]) -> None:
        found = await asyncio.gather(*(watch.look() for watch in watches), return_exceptions=True)
        kind = errors.AuthenticationError if len(expected) == 1 else list
        assert {type(result) for result in found} == {kind}
        if kind is list:
            await asyncio.gather(*(watch.pause(0.1) for watch in watches))
            await asyncio.gather(*(watch.look() for watch in watches))

    asyncio.run(together(3, use))
    # Once it has proved useless, it is not tried again for so few indexes.
    assert endpoints(llamacloud_emulator) == expected + (["index"] * 3 if len(expected) > 1 else [])


def test_a_list_of_more_pages_than_watches_is_not_read_to_its_end(llamacloud_emulator: LlamaCloudEmulator) -> None:
    add(llamacloud_emulator, 3)
    llamacloud_emulator.settings.max_page_size = 1

    async def use(watches: list[Watch]) -> None:
        assert len(await asyncio.gather(*(watch.look() for watch in watches))) == 3

    asyncio.run(together(3, use))
    assert endpoints(llamacloud_emulator) == ["indexes"] * 2 + ["index"] * 3


def test_a_trigger_does_not_use_what_was_read_before_it_started(llamacloud_emulator: LlamaCloudEmulator) -> None:
    async def use() -> None:
        async with watching(CONN, [INDEX_FILINGS]) as first:
            await first.look()
            llamacloud_emulator.set_index(INDEX_FILINGS, status="building")
            async with watching(CONN, [INDEX_FILINGS]) as second:
                (index,) = await second.look()
                assert index.metadata.status == "building"

    asyncio.run(use())
    assert endpoints(llamacloud_emulator) == ["index"] * 2


def test_a_watch_that_needs_the_state_of_a_sync_reads_it(llamacloud_emulator: LlamaCloudEmulator) -> None:
    add(llamacloud_emulator, 3)

    async def use(watches: list[Watch]) -> None:
        async with watching(CONN, ["idx-0"], expand_sync=True) as other:
            (index,) = await other.look()
            assert index.sync_in_progress is False
            await asyncio.gather(*(watch.look() for watch in watches))

    asyncio.run(together(3, use))
    assert sorted(str(name) for name in endpoints(llamacloud_emulator)) == ["index", "indexes"]


def test_when_the_reader_is_cancelled_another_trigger_reads(llamacloud_emulator: LlamaCloudEmulator) -> None:
    llamacloud_emulator.inject(Fault("hang", endpoint="index"))

    async def use() -> None:
        async with watching(CONN, [INDEX_FILINGS]) as first, watching(CONN, [INDEX_FILINGS]) as second:
            reader = asyncio.create_task(first.look())
            await sent(llamacloud_emulator, 1)
            waiter = asyncio.create_task(second.look())
            await asyncio.sleep(0)
            reader.cancel()
            (index,) = await asyncio.wait_for(waiter, 60)
            assert index.id == INDEX_FILINGS

    asyncio.run(use())


def test_other_projects_and_connections_are_read_by_themselves(llamacloud_emulator: LlamaCloudEmulator) -> None:
    other = next(iter(llamacloud_emulator.indexes.values()))["project_id"]

    async def use() -> None:
        async with (
            watching(CONN, [INDEX_FILINGS]) as first,
            watching(CONN, [INDEX_HANDBOOK], project_id=other) as second,
        ):
            await asyncio.gather(first.look(), second.look())

    asyncio.run(use())
    assert endpoints(llamacloud_emulator) == ["index"] * 2


# The connection ---------------------------------------------------------------------------------------------------------


def change_key(emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server refuse the key that it accepted, and put another one into the connection."""
    old, key = emulator.airflow_connection_json, "llx-the-new-key"
    monkeypatch.setattr(emulator, "_api_key", key)  # a running emulator has no public way to change it
    monkeypatch.setattr(emulator, "_keys", [key])  # as above
    assert emulator.airflow_connection_json != old
    monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", emulator.airflow_connection_json)


@pytest.mark.parametrize("expand_sync", [False, True], ids=["list", "single"])
def test_a_changed_key_is_used_by_the_triggers_that_run(
    expand_sync: bool, llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(llamacloud_emulator, 2)

    async def use(watches: list[Watch]) -> None:
        await asyncio.gather(*(watch.look() for watch in watches))
        change_key(llamacloud_emulator, monkeypatch)
        await asyncio.gather(*(watch.pause(0.05) for watch in watches))
        found = await asyncio.gather(*(watch.look() for watch in watches))
        assert [index.id for (index,) in found] == ["idx-0", "idx-1"]

    asyncio.run(together(2, use, expand_sync=expand_sync))


def test_a_new_trigger_uses_the_connection_as_it_is_now(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(llamacloud_emulator, 1)

    async def use() -> None:
        async with watching(CONN, ["idx-0"]) as first:
            await first.look()
            change_key(llamacloud_emulator, monkeypatch)
            async with watching(CONN, ["idx-0"]) as second:
                await second.look()

    asyncio.run(use())
    assert [request.status for request in llamacloud_emulator.requests] == [200, 200]


def test_a_key_that_is_no_longer_valid_is_an_error(llamacloud_emulator: LlamaCloudEmulator) -> None:
    add(llamacloud_emulator, 1)

    async def use() -> None:
        async with watching(CONN, ["idx-0"]) as watch:
            await watch.look()
            llamacloud_emulator.inject(Fault("status", endpoint="index", status=401))
            await watch.pause(0.05)
            with pytest.raises(errors.AuthenticationError):
                await watch.look()
            await watch.pause(0.05)
            await watch.look()

    asyncio.run(use())
    assert len(llamacloud_emulator.requests) == 3


def test_a_connection_that_cannot_be_read_again_stops_no_trigger_that_runs(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add(llamacloud_emulator, 1)

    async def use() -> None:
        async with watching(CONN, ["idx-0"]) as first:
            await first.look()
            monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_DEFAULT", "{}")
            async with watching(CONN, ["idx-0"]) as second:
                await second.look()

    asyncio.run(use())
    assert "could not be read again" in caplog.text


def test_an_index_that_is_gone_does_not_cost_a_client_for_each_look(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    really = AsyncLlamaCloudClient.open

    async def note(config: Any) -> Any:
        opened.append(config)
        return await really(config)

    monkeypatch.setattr(AsyncLlamaCloudClient, "open", note)

    async def use() -> None:
        async with watching(CONN, ["idx-nowhere"]) as watch:
            for _ in range(3):
                with pytest.raises(errors.NotFoundError):
                    await watch.look()
                await watch.pause(0.05)

    asyncio.run(use())
    assert (len(opened), len(llamacloud_emulator.requests)) == (1, 3)


# Slow and broken parts --------------------------------------------------------------------------------------------------


def test_a_slow_index_keeps_no_other_trigger_waiting(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "PATIENCE", 0.05)
    add(llamacloud_emulator, 2)
    release = asyncio.Event()
    really = AsyncLlamaCloudClient.get_index
    slow_reads = []

    async def get_index(self: AsyncLlamaCloudClient, index_id: str, **values: Any) -> Any:
        if index_id == "idx-0":
            slow_reads.append(index_id)
            await release.wait()
        return await really(self, index_id, **values)

    monkeypatch.setattr(AsyncLlamaCloudClient, "get_index", get_index)

    async def use(watches: list[Watch]) -> None:
        slow = asyncio.create_task(watches[0].look())
        for _ in range(3):
            await watches[1].look()
            await watches[1].pause(0.01)
        assert not slow.done()
        release.set()
        (index,) = await slow
        assert index.id == "idx-0"

    asyncio.run(together(2, use, expand_sync=True))
    assert slow_reads == ["idx-0"]


@pytest.mark.parametrize("status", [500, 418])
def test_a_list_that_fails_reaches_no_trigger_whose_index_can_be_read(
    status: int, llamacloud_emulator: LlamaCloudEmulator
) -> None:
    add(llamacloud_emulator, 3)
    llamacloud_emulator.inject(Fault("status", endpoint="indexes", status=status, times=None))

    async def use(watches: list[Watch]) -> None:
        found = await asyncio.gather(*(watch.look() for watch in watches))
        assert [index.id for (index,) in found] == ["idx-0", "idx-1", "idx-2"]

    asyncio.run(together(3, use))


def test_a_list_that_takes_too_long_leaves_the_single_reads(
    llamacloud_emulator: LlamaCloudEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "PATIENCE", 0.2)
    add(llamacloud_emulator, 3)
    llamacloud_emulator.inject(Fault("hang", endpoint="indexes", times=None))

    async def use(watches: list[Watch]) -> None:
        assert len(await asyncio.gather(*(watch.look() for watch in watches))) == 3

    asyncio.run(together(3, use))


@pytest.mark.parametrize(("status", "kind"), [(401, errors.AuthenticationError), (429, errors.RateLimitError)])
def test_a_list_that_is_refused_reaches_no_trigger_that_does_not_need_it(
    status: int, kind: type[Exception], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    add(llamacloud_emulator, 3)
    llamacloud_emulator.settings.max_page_size = (
        len(llamacloud_emulator.indexes) - 2
    )  # the first page shows some of the three
    llamacloud_emulator.inject(Fault("status", endpoint="indexes", status=status, skip=1, times=None))

    async def use(watches: list[Watch]) -> None:
        async with watching(CONN, [INDEX_FILINGS], expand_sync=True) as other:
            with no_backoff():
                found = await asyncio.gather(*(one.look() for one in (other, *watches)), return_exceptions=True)
        kinds = [type(result) for result in found]
        assert (kinds[0], set(kinds[1:])) == (list, {list, kind})

    asyncio.run(together(3, use))
