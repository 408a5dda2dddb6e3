"""The page *LlamaCloud chats* in Airflow's navigation: what Dags asked, what they were told, and what it cost. Read-only."""
