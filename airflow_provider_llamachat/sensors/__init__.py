"""Sensors: what waits for indexes."""
