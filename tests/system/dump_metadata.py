"""Prints every row of an Airflow metadata database as text: ``dump_metadata.py SQL_ALCHEMY_URL``.

Runs in the environment of the Airflow that owns the database, whatever SQLAlchemy that has. Binary columns appear decoded, so
that a search for a secret finds it there too.
"""

from __future__ import annotations

import sys

from sqlalchemy import create_engine, inspect, text


def plain(value: object) -> str:
    """Return a column's value as text."""
    if isinstance(value, memoryview):
        value = value.tobytes()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def main() -> None:
    """Print ``table: column=value, ...`` per row."""
    engine = create_engine(sys.argv[1])
    quote = engine.dialect.identifier_preparer.quote
    with engine.connect() as connection:
        for table in sorted(inspect(engine).get_table_names()):
            rows = connection.execute(text(f"SELECT * FROM {quote(table)}"))
            names = list(rows.keys())
            for row in rows:
                print(f"{table}: " + ", ".join(f"{name}={plain(item)}" for name, item in zip(names, row, strict=True)))


if __name__ == "__main__":
    main()
