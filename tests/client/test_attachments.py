"""The URL of an attachment is a secret: it is returned, and stands in no message, representation or log."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from airflow_provider_llamachat.client import ClientConfig, LlamaCloudClient
from airflow_provider_llamachat.client.endpoints import GET_ATTACHMENT
from airflow_provider_llamachat.client.responses import Reply, decode
from airflow_provider_llamachat.exceptions import InvalidArgumentError, LlamaCloudProtocolError, NotFoundError
from airflow_provider_llamachat.hooks.llamacloud import LlamaCloudHook
from airflow_provider_llamachat.redaction import scrub
from airflow_provider_llamachat.testing import INDEX_FILINGS, OTHER_PROJECT_ID, LlamaCloudEmulator

pytestmark = pytest.mark.usefixtures("llamacloud_connection")
SIGNED = "https://files.invalid/page.jpg?X-Amz-Expires=60&X-Amz-Signature=00ffab00ffab00ffab00ffab&v=1"


@pytest.fixture
def attachment() -> dict[str, str]:
    hook = LlamaCloudHook()
    turn = hook.send_message(hook.create_session([INDEX_FILINGS]).session_id, "What was the revenue in Q3?")
    found: dict[str, str] = turn.sources[0]["attachment"]
    return found


@pytest.fixture
def masked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    secrets: list[str] = []
    monkeypatch.setattr("airflow_provider_llamachat.hooks.llamacloud.mask_secret", secrets.append)
    return secrets


def test_a_source_leads_to_its_picture(
    attachment: dict[str, str], masked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    found = LlamaCloudHook().get_attachment_url(**attachment)
    assert found.url.startswith(f"https://attachments.invalid/{attachment['source_id']}/screenshots/page_2.jpg?")
    assert found.expires_at is not None
    assert found.url not in repr(found) + str(found)
    signature = found.url.rpartition("=")[2]
    assert signature not in repr(found) + caplog.text + scrub(found.url, ())
    assert masked[-2:] == [found.url, found.url.partition("?")[2]]


def test_a_missing_attachment_or_an_invalid_name_is_an_error(attachment: dict[str, str]) -> None:
    hook = LlamaCloudHook()
    with pytest.raises(NotFoundError, match="there is no such attachment"):
        hook.get_attachment_url(attachment["source_id"], "screenshots/page_99.jpg")
    with pytest.raises(NotFoundError):
        hook.get_attachment_url(**attachment, project_id=OTHER_PROJECT_ID)
    for source_id, name in (("", "a"), ("a", " "), ("a", "..")):
        with pytest.raises(InvalidArgumentError):
            hook.get_attachment_url(source_id, name)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {}, json.dumps({"urls": [SIGNED]}).encode()),
        Reply(200, {}, json.dumps([SIGNED]).encode()),
        Reply(200, {"content-type": "text/html"}, SIGNED.encode()),
        Reply(307, {"x-refused-location": SIGNED, "location": SIGNED}, b""),
        Reply(400, {}, json.dumps({"detail": f"not again: {SIGNED}"}).encode()),
    ],
    ids=["fields", "list", "page", "redirect", "refusal"],
)
def test_a_response_that_cannot_be_read_is_not_quoted(reply: Reply) -> None:
    call = GET_ATTACHMENT.call({"attachment_name": "page.jpg"}, query={"source_id": "f"})
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever it is, it must not show the URL
        decode(call, reply, ClientConfig(api_key="llx-a"))
    assert "00ffab" not in str(caught.value)


def test_fields_of_unexpected_types_are_not_an_error(attachment: dict[str, str]) -> None:
    call = GET_ATTACHMENT.call({"attachment_name": "page.jpg"}, query={"source_id": "f"})
    body: dict[str, Any] = {"url": SIGNED, "expires_at": None, "form_fields": "x", "new": 1}
    found = decode(call, Reply(200, {}, json.dumps(body).encode()), ClientConfig(api_key="llx-a"))
    assert (found.url, found.expires_at, found.form_fields) == (SIGNED, None, None)
    with pytest.raises(LlamaCloudProtocolError):
        decode(call, Reply(200, {}, b'{"url": ""}'), ClientConfig(api_key="llx-a"))


def test_the_client_without_the_hook_returns_the_url_too(
    attachment: dict[str, str], llamacloud_emulator: LlamaCloudEmulator
) -> None:
    config = LlamaCloudHook().get_config()
    with LlamaCloudClient(config) as client:
        assert client.get_attachment_url(**attachment).url
    assert llamacloud_emulator.requests[-1].path.endswith("/screenshots%2Fpage_2.jpg")
