"""The pytest plugin, in pytest runs of their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import pytest

from airflow_provider_llamachat.exceptions import LlamaCloudConfigError
from airflow_provider_llamachat.testing import LlamaCloudEmulator

pytest_plugins = ["pytester"]

# Plugins that happen to be installed have warnings of their own.
_QUIET = ("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:anyio")
_NO_AIOHTTP = "import sys\nsys.modules['aiohttp'] = None\n"


def test_pytest_finds_it() -> None:
    (entry,) = entry_points(group="pytest11", name="llamacloud")
    assert entry.value == "airflow_provider_llamachat.testing.pytest_plugin"


@pytest.mark.long
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
        def test_each_test_gets_a_reset_emulator(llamacloud_emulator, turn):
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
            known = {"conn_type": "llamacloud", "password": "llx-emulator-0000", "host": SEEN[0]}
            assert made == {**known, "extra": '{"history_lag": 0}'}

        def test_connection_is_gone():
            assert "AIRFLOW_CONN_LLAMACLOUD_DEFAULT" not in os.environ
        """
    )
    result = pytester.runpytest_subprocess(*_QUIET, "-W", "error", timeout=120)
    result.assert_outcomes(passed=5)


@pytest.mark.airflow
def test_without_aiohttp_only_tests_that_use_the_fixture_fail(pytester: pytest.Pytester) -> None:
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


def test_loading_the_plugin_imports_only_pytest() -> None:
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


@pytest.mark.airflow
@pytest.mark.parametrize("named", ["option", "conftest", pytest.param("both", marks=pytest.mark.airflow), "neither"])
def test_the_plugin_can_be_named_though_pytest_finds_it(named: str, pytester: pytest.Pytester) -> None:
    plugin = "airflow_provider_llamachat.testing.pytest_plugin"
    if named in ("conftest", "both"):
        pytester.makeconftest(f"pytest_plugins = [{plugin!r}]")
    pytester.makepyfile("def test_it(llamacloud_emulator):\n    assert llamacloud_emulator.requests == []")
    options = ("-p", plugin) if named in ("option", "both") else ()
    result = pytester.runpytest_subprocess(*_QUIET, "-W", "error", *options, timeout=60)
    result.assert_outcomes(passed=1)


@pytest.mark.airflow
def test_the_plugin_can_be_left_out(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(llamacloud_emulator):\n    pass")
    result = pytester.runpytest_subprocess(*_QUIET, "-p", "no:llamacloud", timeout=60)
    result.assert_outcomes(errors=1)


@pytest.mark.airflow
def test_a_secrets_backend_that_has_the_connection_is_not_used(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND", "vault.Vault")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    pytester.makepyfile(vault=_VAULT)
    pytester.makepyfile(
        """
        from airflow.providers.common.compat.sdk import BaseHook
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

        def password():
            return BaseHook.get_connection("llamacloud_default").password

        def test_free():
            assert password() == "llx-production"

        def test_caged(llamacloud_connection):
            LlamaCloudHook().create_session()
            assert len(llamacloud_connection.sessions) == 1

        def test_free_again():
            assert password() == "llx-production"
        """
    )
    result = pytester.runpytest_subprocess(*_QUIET, timeout=120)
    result.assert_outcomes(passed=3)


@pytest.mark.airflow
@pytest.mark.parametrize(
    ("where", "early"), [("AIRFLOW__SECRETS__BACKEND", True), ("AIRFLOW__WORKERS__SECRETS_BACKEND", False)]
)
def test_a_secrets_backend_that_the_task_sdk_cached_is_not_used(
    where: str, early: bool, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asked in another process: a module that is first imported here is thrown away with pytester's, and breaks the next import.
    code = "from airflow.sdk.configuration import ensure_secrets_loaded"
    if subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode != 0:
        pytest.skip(_OLDER)
    monkeypatch.setenv(where, "vault.Vault")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    pytester.makepyfile(vault=_VAULT)
    if early:
        # Airflow makes its list of backends when it is imported, and keeps them once it has been asked.
        pytester.makeconftest(
            "from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded\n"
            "assert any(type(backend).__name__ == 'Vault' for backend in ensure_secrets_backend_loaded())"
        )
    pytester.makepyfile(
        """
        import pytest
        from airflow.sdk.configuration import ensure_secrets_loaded
        from airflow.sdk.execution_time.secrets import DEFAULT_SECRETS_SEARCH_PATH_WORKERS
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

        def backends():
            return {type(backend).__name__ for path in (DEFAULT_SECRETS_SEARCH_PATH_WORKERS, ["vault.Environment"])
                    for backend in ensure_secrets_loaded(default_backends=path)}

        def test_caged(llamacloud_connection):
            LlamaCloudHook().create_session()
            assert len(llamacloud_connection.sessions) == 1
            assert "Vault" not in backends()

        def test_free_again():
            assert "Vault" in backends()
        """
    )
    result = pytester.runpytest_subprocess(*_QUIET, timeout=120)
    result.assert_outcomes(passed=2)


_OLDER = "this Airflow's Task SDK keeps no secrets backends of its own"
_VAULT = """
from airflow.secrets.environment_variables import EnvironmentVariablesBackend as Environment
from airflow.secrets import BaseSecretsBackend

class Vault(BaseSecretsBackend):
    def get_conn_value(self, conn_id, team_name=None):
        return "llamacloud://:llx-production@http%3A%2F%2F127.0.0.1%3A9"
"""


@pytest.mark.airflow
def test_a_project_with_nothing_set_up_runs_its_dag_in_parallel_and_leaves_the_users_airflow_alone(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
        monkeypatch.delenv(name)
    home = pytester.mkdir("home")
    monkeypatch.setenv("HOME", str(home))
    pytester.makepyfile(
        my_dag="""
        from airflow.providers.common.compat.sdk import DAG
        from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator

        with DAG(dag_id="mine", schedule=None, catchup=False):
            CreateChatSessionOperator(task_id="create", index_ids=["idx-filings"])
        """
    )
    # In which order the fixtures are asked for must not matter: the first import of Airflow decides where its home is.
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(llamacloud_connection, llamacloud_run_dag, number):
            assert llamacloud_run_dag("my_dag.py").state == "success"
            assert len(llamacloud_connection.sessions) == 1
        """
    )
    result = pytester.runpytest_subprocess(*_QUIET, "-n", "2", timeout=240)
    result.assert_outcomes(passed=2)
    assert list(home.glob("airflow*")) == []


@pytest.mark.airflow
@pytest.mark.parametrize("early", [True, pytest.param(False, marks=pytest.mark.long)])
def test_nothing_of_the_users_airflow_is_written_to(
    early: bool, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
        monkeypatch.delenv(name)
    home = pytester.mkdir("home")
    (home / "plugins").mkdir()
    (home / "plugins" / "theirs.py").write_text("raise SystemExit('a plugin of the user was loaded')")
    (home / "airflow.cfg").write_text(
        "[core]\nxcom_backend = backend.Remote\n[logging]\nlogging_level = INFO\n"
        "[metrics]\nstatsd_on = True\notel_on = True\nstatsd_datadog_enabled = True\n"
        '[openlineage]\ntransport = {"type": "console"}\n'
    )
    monkeypatch.setenv("AIRFLOW_HOME", str(home))
    monkeypatch.setenv("AIRFLOW__CORE__XCOM_BACKEND", "backend.Remote")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    pytester.makepyfile(
        backend="""
        try:
            from airflow.sdk.bases.xcom import BaseXCom
        except ImportError:
            from airflow.models.xcom import BaseXCom

        class Remote(BaseXCom):
            @staticmethod
            def serialize_value(value, **_):
                raise SystemExit("an XCom was written to the user's storage")
        """
    )
    if early:
        # Airflow's import fails if the configuration names a remote storage whose provider is not installed.
        pytester.makeconftest(
            "from airflow.providers.common.compat.sdk import DAG, XCom\nfrom airflow.configuration import conf\n"
            "assert XCom.__name__ == 'Remote'\nconf.set('logging', 'remote_logging', 'True')"
        )
    pytester.makepyfile(
        """
        import os
        from pathlib import Path

        OPTIONS = [("logging", "remote_logging"), ("metrics", "statsd_on"), ("metrics", "otel_on"),
                   ("metrics", "statsd_datadog_enabled")]

        def test_it(llamacloud_run_dag):
            from airflow import settings
            from airflow.configuration import conf
            from airflow.providers.common.compat.sdk import DAG
            from airflow_provider_llamachat.operators.chat import CreateChatSessionOperator

            assert [option for option in OPTIONS if conf.getboolean(*option, fallback=False)] == []
            assert conf.getboolean("openlineage", "disabled")
            assert Path(settings.PLUGINS_FOLDER).parent == Path(os.environ["AIRFLOW_HOME"])
            with DAG(dag_id="mine", schedule=None, catchup=False) as dag:
                CreateChatSessionOperator(task_id="create", index_ids=["idx-filings"])
            run = llamacloud_run_dag(dag)
            assert run.state == "success", run.logs
            assert run.xcom("create")["session_id"]
        """
    )
    result = pytester.runpytest_subprocess(*_QUIET, timeout=240)
    result.assert_outcomes(passed=1)


@pytest.mark.airflow
def test_a_connection_that_is_not_the_emulator_fails_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from airflow.providers.common.compat.sdk import BaseHook, Connection

        @pytest.fixture(autouse=True)
        def elsewhere(monkeypatch):
            production = Connection(
                conn_id="llamacloud_default", conn_type="llamacloud", host="https://production", password="llx-secret")
            monkeypatch.setattr(BaseHook, "get_connection", lambda conn_id: production)

        def test_it(llamacloud_connection):
            pass
        """
    )
    result = pytester.runpytest_subprocess(*_QUIET, timeout=120)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*could reach the real service*Host found: https://production;*"])
    assert "llx-secret" not in result.stdout.str()


@pytest.mark.usefixtures("llamacloud_connection")
@pytest.mark.parametrize(
    "reach",
    [lambda hook: hook.get_conn(), lambda hook: asyncio.run(hook.get_async_conn())],
    ids=["worker", "triggerer"],
)
@pytest.mark.parametrize("host", [None, "https://llamacloud.example.com"])
def test_no_other_connection_leads_to_another_machine(
    host: str | None, reach: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

    made = {"conn_type": "llamacloud", "password": "llx-production", "host": host}
    monkeypatch.setenv("AIRFLOW_CONN_LLAMACLOUD_PROD", json.dumps(made))
    with pytest.raises(LlamaCloudConfigError, match="'llamacloud_prod' does not lead to an emulator") as caught:
        reach(LlamaCloudHook("llamacloud_prod"))
    assert "AIRFLOW_CONN_LLAMACLOUD_PROD" in str(caught.value), "it says what to set"
    assert str(caught.value).endswith(f"{host or 'https://api.cloud.llamaindex.ai'}.")


@pytest.mark.usefixtures("llamacloud_connection")
def test_another_connection_may_lead_to_another_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

    with LlamaCloudEmulator() as other:
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", other.airflow_connection_json)
        LlamaCloudHook("other").create_session()
        assert len(other.sessions) == 1


@pytest.mark.airflow
@pytest.mark.parametrize(("name", "other"), [("NO_PROXY", "no_proxy"), ("no_proxy", "NO_PROXY")])
def test_a_proxy_of_the_environment_is_not_used(
    name: str, other: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setenv(name, "intranet.example")
    monkeypatch.delenv(other, raising=False)
    pytester.makepyfile(
        f"""
        import os, urllib.request
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

        def test_it(llamacloud_connection):
            LlamaCloudHook().create_session()
            assert len(llamacloud_connection.sessions) == 1
            assert urllib.request.proxy_bypass("127.0.0.1")
            assert os.environ[{name!r}] == "intranet.example,127.0.0.1"

        def test_as_before():
            assert os.environ[{name!r}] == "intranet.example" and {other!r} not in os.environ
        """
    )
    result = pytester.runpytest_subprocess(*_QUIET, timeout=120)
    result.assert_outcomes(passed=2)
