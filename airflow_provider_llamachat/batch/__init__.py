"""The batch engine: it asks many prompts in one process and pays for each one once. It does not import Airflow.

Layers, top first: :mod:`.engine` (the order of prompts), :mod:`.journal` and :mod:`.committer` (what is durable before a
prompt is sent), :mod:`.storage` (atomic files), :mod:`.items` and :mod:`.records` (pure).
"""
