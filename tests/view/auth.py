"""An auth manager with two kinds of users: an admin reads every Dag, and others do not read what is called secret."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser


class TwoUsersAuthManager(SimpleAuthManager):
    """Airflow's simple auth manager, by which a Dag ``secret...`` is an admin's, and so are the XComs of a Dag ``private...``."""

    def is_authorized_dag(
        self,
        *,
        method: Any,
        user: SimpleAuthManagerUser,
        access_entity: DagAccessEntity | None = None,
        details: DagDetails | None = None,
    ) -> bool:
        """Decide about a Dag, or about one kind of what belongs to it."""
        dag_id = (details.id if details else None) or ""
        is_hidden = dag_id.startswith("secret") or (
            dag_id.startswith("private") and access_entity is DagAccessEntity.XCOM
        )
        if is_hidden and user.username != ADMIN.username:
            return False
        return super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details)


ADMIN = SimpleAuthManagerUser(username="admin", role="ADMIN")
GUEST = SimpleAuthManagerUser(username="guest", role="VIEWER")
