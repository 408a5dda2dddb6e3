"""The hook: an Airflow connection becomes a client."""
