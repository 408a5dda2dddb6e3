"""A database with runs that asked, and clients of the page's application: an admin's, a guest's, and nobody's."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.airflow.runner import own_warnings_only
from tests.view.rows import BATCH, FAILED, INTERRUPTED, NOW, Asked, add_runs, questions

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

HAS_PAGE = tuple(int(part) for part in version("apache-airflow").split(".")[:2]) >= (3, 1)
# Older Airflows have no page to test; that they do without is tested in tests/unit/test_view_plugin.py.
collect_ignore = [] if HAS_PAGE else ["test_app.py", "test_shown.py"]


@pytest.fixture(scope="session")
def filled(airflow_database: Path) -> None:
    """Four Dags: ``nightly`` asked everything there is, ``mapped`` two mapped questions, ``secret`` and ``private`` one each."""
    from airflow.utils.session import create_session

    everything = [*questions(2), FAILED, INTERRUPTED, BATCH, Asked("skipped", state="skipped", xcoms={}, rendered=None)]
    subclass = Asked("subclass", operator="MyOwnQuestion")
    subclass.xcoms = {**subclass.xcoms, "_link_LlamaCloudConversationLink": "http://somewhere"}
    with create_session() as session:
        add_runs(session, "nightly", {"run/1": (NOW - timedelta(days=1), everything)})
        add_runs(session, "nightly", {"run/2": (NOW - timedelta(hours=1), [subclass, Asked("other", "EmptyOperator")])})
        add_runs(session, "nightly", {"long ago": (NOW - timedelta(days=60), questions(1))})
        add_runs(session, "nightly", {"asked nothing": (NOW, [Asked("other", "EmptyOperator")])})
        for dag_id in ("secret", "private"):
            add_runs(session, dag_id, {"run/1": (NOW - timedelta(hours=2), questions(1))})
        mapped = [Asked("ask", map_index=0), Asked("ask", map_index=1, state="running", xcoms={}, rendered=None)]
        add_runs(session, "mapped", {"not ours": (NOW, [Asked("other", "MyOwnQuestion")])})
        add_runs(session, "mapped", {"run/1": (NOW - timedelta(hours=3), mapped)})


@pytest.fixture(scope="session")
def app(filled: None) -> Iterator[Any]:
    """The application, with an auth manager of Airflow's own kind."""
    from airflow.api_fastapi.app import get_auth_manager, init_auth_manager, purge_cached_app

    with own_warnings_only():  # Airflow's web framework warns of the HTTP client that it has
        importlib.import_module("fastapi.testclient")
        from airflow_provider_llamachat.view.app import create_app

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "tests.view.auth.TwoUsersAuthManager")
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "True")
        patch.setenv(
            "AIRFLOW__API_AUTH__JWT_SECRET",
            "a secret of these tests, long enough for its algorithm, which is HS512 ...",
        )
        init_auth_manager()
        assert type(get_auth_manager()).__name__ == "TwoUsersAuthManager"
        yield create_app()
        purge_cached_app()


def client_of(app: Any, user: Any = None) -> TestClient:
    """A client with the cookie that Airflow gives a browser."""
    from airflow.api_fastapi.app import get_auth_manager
    from fastapi.testclient import TestClient

    cookies = {} if user is None else {"_token": get_auth_manager().generate_jwt(user)}
    return TestClient(app, cookies=cookies, raise_server_exceptions=False)


@pytest.fixture(scope="session")
def admin(app: Any) -> TestClient:
    """May read everything."""
    from tests.view.auth import ADMIN

    return client_of(app, ADMIN)


@pytest.fixture(scope="session")
def guest(app: Any) -> TestClient:
    """May read neither the Dag ``secret`` nor the XComs of the Dag ``private``."""
    from tests.view.auth import GUEST

    return client_of(app, GUEST)


@pytest.fixture(scope="session")
def nobody(app: Any) -> TestClient:
    """Has not logged in."""
    return client_of(app)
