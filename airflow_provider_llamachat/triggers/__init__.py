"""Triggers that wait for turns and indexes."""
