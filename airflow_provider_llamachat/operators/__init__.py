"""Operators that create, save and delete sessions, ask one question, ask a batch of prompts, and sync an index."""
