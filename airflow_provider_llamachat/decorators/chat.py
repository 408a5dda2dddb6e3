"""``@task.llamachat``: a function returns the prompt, the task asks it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    SET_DURING_EXECUTION,
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.operators.chat import SendChatMessageOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator


class LlamaChatDecoratedOperator(DecoratedOperator, SendChatMessageOperator):
    """Asks what a Python function returns; everything else is :class:`~..operators.chat.SendChatMessageOperator`.

    :param python_callable: returns the prompt. Templates in the returned text are rendered.
    :param op_kwargs: keyword arguments of the function. (templated)
    :param op_args: positional arguments of the function. (templated)
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *SendChatMessageOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {**DecoratedOperator.template_fields_renderers}

    custom_operator_name: str = "@task.llamachat"
    # The prompt is known only when the function has run; Airflow then stores the rendered fields again.
    overwrite_rtif_after_execution: bool = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., str],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("multiple_outputs", None):
            # The factory infers it from the function's return annotation, which is the prompt's and not the task's.
            kwargs["multiple_outputs"] = False
        super().__init__(
            python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, prompt=SET_DURING_EXECUTION, **kwargs
        )

    def execute(self, context: Context) -> str:
        """Call the function, render what it returns, and ask it."""
        return self._ask(context)

    def _ask(self, context: Context) -> str:
        context_merge(context, self.op_kwargs)
        arguments_by_name = determine_kwargs(self.python_callable, self.op_args, context)
        self.prompt = arguments.prompt(self.python_callable(*self.op_args, **arguments_by_name))
        self.render_template_fields(context)
        return super()._ask(context)


def llamachat_task(python_callable: Callable[..., str] | None = None, **kwargs: Any) -> TaskDecorator:
    """Turn a function that returns a prompt into a task that asks it.

    Takes the arguments of :class:`~..operators.chat.SendChatMessageOperator` but ``prompt``; the function's own arguments may
    be XComArgs, and ``.partial()``/``.expand()`` map over them.
    """
    decorator: TaskDecorator = task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=LlamaChatDecoratedOperator, **kwargs
    )
    return decorator
