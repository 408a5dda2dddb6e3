"""The rule of a turn: what a question is, what a session's history says of it, and which steps ask it once."""
