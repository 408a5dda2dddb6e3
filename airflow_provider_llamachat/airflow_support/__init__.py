"""Code that requires Airflow: a task's memory across attempts, the log of a turn, lineage and metrics."""
