"""Apache Airflow provider for LlamaCloud chat sessions.

Importing this package imports nothing else. Airflow's provider discovery reads only :mod:`.provider_info`, and a Dag file
loads only the operators that it uses.
"""

__version__ = "1.1.0"
