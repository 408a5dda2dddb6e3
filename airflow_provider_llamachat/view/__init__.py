"""The page *LlamaCloud chats* in Airflow's navigation: what Dags asked, the answers, and the cost. Read-only."""
