"""Tests, by what they need: nothing (unit), the emulator (client, emulator), Airflow (airflow), a whole Airflow (system)."""
