"""The decorator ``@task.llamachat``: a function returns the prompt, and the task asks it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_llamachat import arguments
from airflow_provider_llamachat.exceptions import InvalidArgumentError
from airflow_provider_llamachat.operators.chat import SendChatMessageOperator
from airflow_provider_llamachat.redaction import excerpt

try:
    from airflow.providers.common.compat.sdk import SET_DURING_EXECUTION
except ImportError:  # common-compat before 1.21; the text is shown until the function has run
    SET_DURING_EXECUTION = "DYNAMIC (set during execution)"  # type: ignore[assignment]  # stands in where the name does not exist

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator


class LlamaChatDecoratedOperator(DecoratedOperator, SendChatMessageOperator):
    """Ask the prompt that a Python function returns. Otherwise like :class:`~..operators.chat.SendChatMessageOperator`.

    :param python_callable: function that returns the prompt. It may be asynchronous.
    :param render_prompt: render Jinja templates in the returned text. Unlike in Airflow's ``@task.bash``, the default is False: a prompt
        often contains text of documents or earlier answers, in which ``{{ conn.….password }}`` must not be rendered.
    :param op_kwargs: keyword arguments of the function. (templated)
    :param op_args: positional arguments of the function. (templated)
    """

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *SendChatMessageOperator.template_fields)
    # The function reads files itself. An argument that ends like the name of a file is not one.
    template_ext: Sequence[str] = ()

    custom_operator_name: str = "@task.llamachat"
    # The prompt is known only after the function has run. Airflow then stores the rendered fields again.
    overwrite_rtif_after_execution: bool = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., str | Awaitable[str]],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        render_prompt: bool = False,
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("multiple_outputs", None):
            # The factory infers it from the function's return annotation, which describes the prompt and not the answer.
            kwargs["multiple_outputs"] = False
        self.render_prompt = render_prompt
        super().__init__(
            python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, prompt=SET_DURING_EXECUTION, **kwargs
        )

    def execute(self, context: Context) -> str:
        """Call the function, and ask the prompt that it returns."""
        return self._ask(context)

    def _ask(self, context: Context) -> str:
        context_merge(context, self.op_kwargs)
        given = determine_kwargs(self.python_callable, self.op_args, context)
        returned = self.python_callable(*self.op_args, **given)
        if inspect.isawaitable(returned):
            from airflow_provider_llamachat.airflow_support import own_loop

            returned = own_loop.run(returned)
        if not isinstance(returned, str) or arguments.says_nothing(returned):
            raise InvalidArgumentError(
                f"The function {self.python_callable.__name__} must return the prompt as text that is not blank. It returned "
                f"{type(returned).__name__} {excerpt(repr(returned), limit=80)}."
            )
        self.prompt = self.render_template(returned, context) if self.render_prompt else returned
        return super()._ask(context)


def llamachat_task(python_callable: Callable[..., str | Awaitable[str]] | None = None, **kwargs: Any) -> TaskDecorator:
    """Turn a function that returns a prompt into a task that asks the prompt.

    Takes ``render_prompt`` and the arguments of :class:`~..operators.chat.SendChatMessageOperator` except ``prompt``. The arguments of
    the function may be XComArgs or contain templates, and can be mapped with ``.partial()`` and ``.expand()``.
    """
    decorator: TaskDecorator = task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=LlamaChatDecoratedOperator, **kwargs
    )
    return decorator
