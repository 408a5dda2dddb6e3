"""Prints what a hook makes of a stored connection: ``stored_config.py CONN_ID``, in the environment of the Airflow that stores it.

One line of JSON: ``extra`` (as stored) and ``config`` (the client's configuration, key included).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys


def main() -> None:
    """Read the row as Airflow does, hand it to a hook, print."""
    from airflow.models import Connection
    from airflow.utils.session import create_session
    from sqlalchemy import select

    from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

    with create_session() as session:
        stored = session.scalars(select(Connection).where(Connection.conn_id == sys.argv[1])).one()
        os.environ["AIRFLOW_CONN_STORED"] = stored.as_json()
        extra = stored.extra_dejson
    config = LlamaCloudHook("stored").get_config()
    print(json.dumps({"extra": extra, "config": dataclasses.asdict(config)}))


if __name__ == "__main__":
    main()
