"""Secrets are masked in everything that a run writes: notebook, page, index, log, status; and no other text changes."""

import html
import json
import os
import time
from urllib.parse import quote

from helpers.headless import mask_secrets, secret_name
from helpers.headless.masking import _pattern

import pytest

A = "a1B2c3D4e5F6g7H8" * 4
TOKENS = {  # by issuer, put together here so that no scanner takes this file for a leak
    "Hugging Face": "hf_" + A[:30], "Hugging Face, organisation": "api_org_" + A[:30], "GitHub": "ghp_" + A[:36],
    "GitHub, fine-grained": "github_pat_" + A[:22] + "_" + A[:50], "GitLab": "glpat-" + A[:20], "GitLab runner": "glrt-" + A[:20],
    "OpenAI": "sk-proj-" + A[:40], "Stripe": "sk_live_" + A[:24], "Amazon": "AKIA" + "ABCDEFGH23456789", "Google": "AIza" + A[:35],
    "Google OAuth": "ya29." + A[:40], "Google client": "GOCSPX-" + A[:28], "Slack": "xoxb-" + "1234567890-" + A[:24],
    "Slack app": "xapp-1-" + A[:24], "Slack hook": "hooks.slack.com/services/T0123/B0123/" + A[:24], "PyPI": "pypi-" + A[:60],
    "npm": "npm_" + A[:36], "SendGrid": "SG." + A[:22] + "." + A[:43], "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0." + A[:43],
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----\n" + A + "\n-----END OPENSSH PRIVATE KEY-----",
}  # fmt: skip
INSIDE = {  # a text, and what is masked in it
    "https://me:hunter2@example.org/x": "me:hunter2",
    "http://127.0.0.1:8888/lab?token=" + A[:48]: A[:48],
    "ws://host/api/kernels/1/channels?session_id=2&token=" + A[:48] + "#x": A[:48],
    "https://bucket.example.org/a?X-Amz-Signature=" + A[:40] + "&x=1": A[:40],
    "https://example.org/a?api_key=hunter22&b=c": "hunter22",
    'headers = {"Authorization": "Bearer ' + A[:20] + '"}': A[:20],
    "authorization: token " + A[:20]: A[:20],
    'password = "correcthorse"': "correcthorse",
    "{'db_password': 'correcthorse', 'user': 'me'}": "correcthorse",
    "{&quot;password&quot;: &quot;correcthorse&quot;}": "correcthorse",
    "DB_PASSWORD=correcthorse": "correcthorse",
}
HARMLESS = [
    "max_new_tokens=64 tokens=1024", "https://example.org/a?max_tokens=1024&page=2", "password = getpass()", "os.environ['HF_TOKEN']",
    "the token is masked; a secret stays a secret: see below", "https://example.org:8080/path@x", "task-" + "a" * 30, "hf_hub_download",
    "authorization: needed", "skip-" + "b" * 30, "AKIA is a prefix", "eyJ", "password:", "tokens_per_second=24500.5", "<td>1:2@3</td>",
]  # fmt: skip


@pytest.mark.parametrize("issuer", TOKENS)
def test_a_token_of_any_known_form_is_masked(issuer):
    token = TOKENS[issuer]
    for text in (token, f"<b>{token}</b>", f"x = '{token}'", f"data{token}\n"):
        if issuer in ("Amazon", "Google", "Google OAuth", "JWT", "OpenAI", "SendGrid") and text.startswith("data"):
            continue  # these need a boundary: they could be part of a word or of a figure
        assert token not in mask_secrets(text) and "***" in mask_secrets(text)


@pytest.mark.parametrize("text", INSIDE)
def test_a_secret_inside_of_an_address_a_header_or_an_assignment_is_masked(text):
    assert mask_secrets(text) == text.replace(INSIDE[text], "***")


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_does_not_change(text):
    assert mask_secrets(text) == text


@pytest.mark.parametrize(
    "value", ["tr0ub4dor&3", "correcthorse", "/wJalrXUtnFEMI/K7MDENG", "a<b>&\"c'd", "ümlaut-wört", "back\\slash\n2"]
)
def test_the_value_of_a_secret_variable_is_masked_however_it_is_written(monkeypatch, value):
    monkeypatch.setenv("SERVICE_PASSWORD", value)
    forms = (
        value,
        html.escape(value),
        html.escape(value, quote=False),
        json.dumps(value)[1:-1],
        repr(value)[1:-1],
        quote(value, safe=""),
    )
    for form in forms:
        assert mask_secrets({"a": [f"before {form} after", 1]}) == {"a": ["before *** after", 1]}


def test_flags_paths_and_short_values_of_such_variables_stay(monkeypatch, tmp_path):
    for name, value in {
        "A_TOKEN": "disabled",
        "B_TOKEN": str(tmp_path),
        "C_PASSWORD": "abc",
        "D_SECRET": "true",
    }.items():
        monkeypatch.setenv(name, value)
    text = f"disabled {tmp_path} abc true"
    assert mask_secrets(text) == text


def test_names_that_say_secret():
    assert all(map(secret_name, ("HF_TOKEN", "api_key", "my-password", "AWS_SECRET_ACCESS_KEY", "private_key")))
    assert not any(map(secret_name, ("TOKENIZERS_PARALLELISM", "max_tokenize", "keyboard", "passage")))


def test_a_secret_reaches_nothing_that_a_run_writes(book, monkeypatch):
    """In a piece of its own, escaped, in a table, in an error, in the source, and as the heading of a step."""
    monkeypatch.setenv("OWN_API_KEY", "lower<case>secret")
    token = TOKENS["Hugging Face"]
    book.write(
        "00_command",
        f"import os, subprocess\nprint('{token[:9]}', end='', flush=True); print('{token[9:]}', os.environ['OWN_API_KEY'])",
        "import pandas; pandas.DataFrame({'a': [os.environ['OWN_API_KEY']]})",
        f"# curl http://localhost:8888/lab?token={A[:48]}\nsubprocess.run(['sh', '-c', 'exit 3', '{token}'], check=True)",
    )
    assert book.run() == "failed" and book.entry("00_command")["why"].startswith("CalledProcessError: Command")
    assert "exit status 3" in book.lines[-2] and "returned non-zero exit status 3" in book.page()
    secrets = (token, "lower<case>secret", "lower&lt;case&gt;secret", A[:48])
    texts = ["\n".join(book.lines), *(f.read_text() for f in book.out.rglob("*") if f.is_file())]
    assert len(texts) >= 5 and not [secret for text in texts for secret in secrets if secret in text]
    assert "***" in book.entry("00_command")["last_lines"] and "token=***" in book.entry("00_command")["source"]


def test_large_notebooks_are_masked_quickly_and_without_compiling_anew():
    figure = {"cells": [{"data": {"image/png": os.urandom(1_000_000).hex(), "n": n}} for n in range(3)]}
    mask_secrets(figure)
    compiled, before = _pattern.cache_info().misses, time.process_time()
    assert mask_secrets(figure) == figure
    assert _pattern.cache_info().misses == compiled and time.process_time() - before < 10
    for text in (
        "://" * 300_000,
        "?token=" * 100_000,
        "authorization " * 100_000,
        "-----BEGIN PRIVATE KEY" * 10_000,
        "eyJaaaaaaaa." * 100_000,
    ):
        before = time.process_time()
        mask_secrets(text)
        assert time.process_time() - before < 10, text[:20]
