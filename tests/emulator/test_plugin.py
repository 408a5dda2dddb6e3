"""The pytest plugin, in pytest runs of their own."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

# Plugins that happen to be installed have warnings of their own.
_QUIET = ("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:anyio")
_NO_AIOHTTP = "import sys\nsys.modules['aiohttp'] = None\n"


def test_pytest_finds_it() -> None:
    (entry,) = entry_points(group="pytest11", name="llamacloud")
    assert entry.value == "airflow_provider_llamachat.testing.pytest_plugin"


def test_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import json, os, urllib.error, urllib.request
        import pytest
        from airflow_provider_llamachat.testing import Fault

        SEEN = []

        def call(emulator):
            request = urllib.request.Request(
                emulator.url + "/api/v1/projects", headers={"Authorization": "Bearer " + emulator.api_key}
            )
            return urllib.request.urlopen(request).status

        @pytest.mark.parametrize("turn", [1, 2])
        def test_each_test_gets_it_as_new(llamacloud_emulator, turn):
            assert llamacloud_emulator.requests == []
            assert call(llamacloud_emulator) == 200
            llamacloud_emulator.inject(Fault("status", times=None))
            llamacloud_emulator.settings.max_prompt = 1
            with pytest.raises(urllib.error.HTTPError):
                call(llamacloud_emulator)
            assert len(llamacloud_emulator.requests) == 2
            SEEN.append(llamacloud_emulator.url)

        def test_it_was_one_server():
            assert len(SEEN) == 2 and len(set(SEEN)) == 1

        def test_connection(llamacloud_connection, llamacloud_emulator):
            assert llamacloud_connection is llamacloud_emulator
            assert llamacloud_emulator.faults == [] and llamacloud_emulator.settings.max_prompt == 1000
            made = json.loads(os.environ["AIRFLOW_CONN_LLAMACLOUD_DEFAULT"])
            assert made == {"conn_type": "llamacloud", "password": "llx-emulator-0000", "host": SEEN[0]}

        def test_connection_is_gone():
            assert "AIRFLOW_CONN_LLAMACLOUD_DEFAULT" not in os.environ
        """
    )
    result = pytester.runpytest_subprocess(*_QUIET, "-W", "error", timeout=60)
    result.assert_outcomes(passed=5)


def test_without_aiohttp_only_those_who_ask_hear_of_it(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(_NO_AIOHTTP)
    pytester.makepyfile(
        """
        def test_unconcerned():
            pass

        def test_concerned(llamacloud_emulator):
            pass
        """
    )
    result = pytester.runpytest_subprocess(*_QUIET, timeout=60)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*needs aiohttp. Install the extra: pip install 'airflow-provider-llamachat?testing?'*"]
    )


def test_loading_the_plugin_imports_next_to_nothing() -> None:
    code = (
        "import sys, pytest\nbefore = set(sys.modules)\n"
        "import airflow_provider_llamachat.testing.pytest_plugin\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('importlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [
        "airflow_provider_llamachat",
        "airflow_provider_llamachat.testing",
        "airflow_provider_llamachat.testing.pytest_plugin",
    ]
