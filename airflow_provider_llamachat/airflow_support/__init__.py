"""What only makes sense inside a running Airflow task: its memory across attempts."""
