"""The batch engine: many prompts in one process, each paid for once, whatever kills the process. No Airflow import.

Layers, top first: :mod:`.engine` (what is asked when), :mod:`.journal` and :mod:`.committer` (what is durable before
anything is asked), :mod:`.storage` (files that are whole or absent), :mod:`.items` and :mod:`.records` (pure).
"""
