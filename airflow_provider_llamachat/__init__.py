"""Apache Airflow provider for LlamaCloud chat sessions.

Importing this package imports nothing else: Airflow's provider discovery reads :mod:`.provider_info` alone, and a Dag file
pays only for the operators it names.
"""

__version__ = "1.1.0"
