"""Code that requires a running Airflow task: its memory across attempts."""
