"""Dags that the tests beside this folder run on a real Airflow."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_llamachat.operators.chat import (
    CreateChatSessionOperator,
    DeleteChatSessionOperator,
    SendChatMessageOperator,
)

COMMON: dict[str, Any] = {"schedule": None, "catchup": False}
Q3 = "What was the revenue in Q3?"

with DAG(dag_id="whole_life", **COMMON) as whole_life:
    create = CreateChatSessionOperator(task_id="create", index_ids=["idx-filings", "idx-handbook"])
    session_id = create.output["session_id"]
    ask = SendChatMessageOperator(task_id="ask", session_id=session_id, prompt=Q3)
    later = SendChatMessageOperator(
        task_id="later", session_id=session_id, prompt="And in Q2, {{ ds[:2] }}?", deferrable=True
    )

    @task.llamachat(session_id=session_id, index_ids=create.output["index_ids"], render_prompt=True)
    def decorated(topic: str, ds: str | None = None) -> str:
        """Return a prompt with an XCom, a context variable and a template in it."""
        return f"What is said of {topic} in {str(ds)[:2]}{{{{ ds[2:4] }}}}?"

    @task
    def report(session: str, indexes: list[str], answers: list[str], usage: dict[str, Any]) -> dict[str, Any]:
        """Hand on what a downstream task received."""
        return {"session": session, "indexes": indexes, "answers": answers, "usage": usage}

    third = decorated("vacation")
    told = report(session_id, create.output["index_ids"], [ask.output, later.output], ask.output["usage"])
    delete = DeleteChatSessionOperator(task_id="delete", session_id=session_id)
    ask >> later >> third >> told >> delete.as_teardown(setups=create)

with DAG(dag_id="mapped", **COMMON) as mapped:
    sessions = CreateChatSessionOperator.partial(task_id="create").expand(index_ids=[["idx-filings"], ["idx-handbook"]])
    asked = SendChatMessageOperator.partial(task_id="ask", prompt=Q3).expand(session_id=sessions.output)

    one = CreateChatSessionOperator(task_id="one", index_ids="idx-filings")

    @task.llamachat(session_id=one.output["session_id"])
    def decorated_mapped(topic: str) -> str:
        """Ask about one topic."""
        return f"What about {topic}?"

    decorated_mapped.expand(topic=["revenue"])
    asked >> DeleteChatSessionOperator.partial(task_id="delete").expand(session_id=sessions.output)

with DAG(dag_id="retried", **COMMON) as retried:
    opened = CreateChatSessionOperator(task_id="create", index_ids=["idx-filings"])
    for mode in (False, True):
        SendChatMessageOperator(
            task_id="deferred" if mode else "direct",
            session_id=opened.output["session_id"],
            prompt=f"{Q3} {'deferred' if mode else 'direct'}",
            deferrable=mode,
            retries=1,
            retry_delay=0.1,
            # The first try may be short of time; how busy the machine is does not decide what becomes of the second.
            turn_timeout="{{ dag_run.conf.get('turn_timeout', 60) if ti.try_number == 1 else 60 }}",
        )
    retried.get_task("direct") >> retried.get_task("deferred")


class FailsAfterCreating(CreateChatSessionOperator):
    """Loses its first try after the session exists, as a killed worker would."""

    def execute(self, context: Any) -> dict[str, Any]:
        """Create, then fail once."""
        session = super().execute(context)
        if context["ti"].try_number == 1:
            raise RuntimeError("the worker is lost here")
        return session


with DAG(dag_id="create_retried", **COMMON) as create_retried:
    FailsAfterCreating(task_id="create", index_ids=["idx-filings"], retries=1, retry_delay=0.1)

with DAG(dag_id="any_arguments", render_template_as_native_obj=True, **COMMON) as any_arguments:
    any_create = CreateChatSessionOperator(
        task_id="create",
        index_ids="{{ dag_run.conf.index_ids }}",
        project_id="{{ dag_run.conf.get('project_id') }}",
        retries=2,
    )
    any_ask = SendChatMessageOperator(
        task_id="ask",
        session_id="{{ dag_run.conf.get('session_id') or ti.xcom_pull('create', key='session_id') }}",
        prompt="{{ dag_run.conf.get('prompt', '') }}",
        index_ids="{{ dag_run.conf.get('ask_index_ids') }}",
        on_interrupted="{{ dag_run.conf.get('on_interrupted', 'fail') }}",
        retries=2,
    )
    (
        any_create
        >> any_ask
        >> DeleteChatSessionOperator(task_id="delete", session_id=any_create.output["session_id"]).as_teardown(
            setups=any_create
        )
    )

with DAG(dag_id="quiet", **COMMON) as quiet:
    quiet_create = CreateChatSessionOperator(task_id="create", index_ids="idx-filings", do_xcom_push=False)

    @task
    def open_session() -> str:
        """Create a session with the hook."""
        from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook

        return LlamaCloudHook().create_session(["idx-filings"]).session_id

    SendChatMessageOperator(task_id="ask", session_id=open_session(), prompt=Q3, do_xcom_push=False)


class LosesItsWorker(SendChatMessageOperator):
    """Dies in its first try when the answer has begun, as with a killed worker: nothing of the operator's own code runs after."""

    def execute(self, context: Any) -> str:
        """Remember which try this is."""
        self.try_number = context["ti"].try_number
        return super().execute(context)

    def get_hook(self) -> Any:
        """Break off in the middle once, after what the operator itself does with the event."""
        hook = super().get_hook()
        client = hook.get_conn()
        answer = client.answer

        def die(_event: Any) -> None:
            if self.try_number == 1:
                raise RuntimeError("the worker is lost here")

        client.answer = lambda *values, **options: answer(*values, **{**options, "on_event": die})  # type: ignore[method-assign]  # dies
        return hook


with DAG(dag_id="worker_lost", **COMMON):
    LosesItsWorker(
        task_id="ask",
        session_id=CreateChatSessionOperator(task_id="create", index_ids="idx-filings").output["session_id"],
        prompt=Q3,
        retries=1,
        retry_delay=0.1,
    )

for how in ("direct", "deferred"):
    with DAG(dag_id=f"documents_{how}", **COMMON):
        of_documents = CreateChatSessionOperator(task_id="create", index_ids="idx-filings")

        @task
        def document() -> str:
            """Return what somebody wrote, with what Jinja would take for orders."""
            return "{{ conn.llamacloud_default.password }} {% raw 100% {#"

        @task.llamachat(session_id=of_documents.output["session_id"], deferrable=how == "deferred")
        def summarize(text: str, ds: str | None = None) -> str:
            """Put the document into a prompt."""
            return f"Summarize this as of {ds}: {text}"

        summarize(document())

with DAG(dag_id="never_created", **COMMON):
    broken = CreateChatSessionOperator(task_id="create", index_ids=7)
    for missing_is_fine in (True, False):
        broken >> DeleteChatSessionOperator(
            task_id="tolerant" if missing_is_fine else "strict",
            session_id=broken.output["session_id"],
            ignore_missing=missing_is_fine,
            trigger_rule="all_done",
        )

with DAG(dag_id="returns_nothing", **COMMON):

    @task.llamachat(session_id="ses-1", retries=2)
    def forgets_to_return() -> str:
        """Return no prompt."""
        return None  # type: ignore[return-value]  # wrong on purpose

    forgets_to_return()
