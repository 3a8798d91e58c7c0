"""Keeps secrets out of everything that is recorded or printed: addresses, params, diffs, logs, errors."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"
HIDE = "TLRESEARCH_HIDE"
"""Environment variable that lists variables whose values are hidden; child processes inherit it."""
_FOLDERS = ("PWD", "OLDPWD")  # environment variables that only look like secrets

# The last word of a key decides: `api_token` is a secret, `max_tokens` and `tokenizer` are not.
_WORD = (
    r"(?:password|passwd|pwd|passphrase|secret|token|credentials?|"
    r"(?:api|access|private|secret|account|encryption)[_-]?key|apikey)"
)
_SECRET_KEY = re.compile(rf"(?:^|[._\s/-]){_WORD}$", re.IGNORECASE)
# User and password: from "//" to the last "@", since a password may itself contain "@" or "/". Digits after ":" and
# in front of "/" are a port, not a password.
_USERINFO = re.compile(r"(?<=://)(?:[^\s/@:'\"]*:(?!\d+/)[^\s'\"]*|[^\s/@'\"]+)@")
_QUERY = re.compile(
    rf"(?P<key>[?&;](?:[\w.-]*[_.-])?(?:{_WORD}|key|sig|signature|sas|auth|x-amz-[\w-]+)=)[^&;#\s'\"]*",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(
    rf"(?P<key>(?<![A-Za-z0-9])(?:[A-Za-z0-9.]*[_.-])*{_WORD}['\"]?\s*[=:]\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|[^\s,;&'\"\)\]\}]+)",
    re.IGNORECASE,
)
# Tokens with a recognisable form: GitHub, Hugging Face, AWS, Databricks, OpenAI, GitLab, Slack, HTTP headers.
_TOKEN = re.compile(
    r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|hf_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|dapi[0-9a-f]{32}|"
    r"sk-[A-Za-z0-9_-]{20,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,})|"
    r"(?<=Bearer )\S+|(?<=Basic )[A-Za-z0-9+/=]{8,}"
)
# Their beginnings: searching a long text for these takes a thirtieth of the time of the expression.
_TOKEN_STARTS = ("gh", "hf_", "AKIA", "dapi", "sk-", "glpat-", "xox", "Bearer ", "Basic ")


def read_variable(key: str, *default: Any) -> Any:
    """Resolves ``${oc.env:KEY}`` and ``${oc.env:KEY,default}`` in a config, and hides the value from now on.

    Raises:
        KeyError: If there is neither such a variable nor a default.
    """
    if key in os.environ:
        hidden = os.environ.get(HIDE, "").split(",")
        if key not in hidden:
            os.environ[HIDE] = ",".join(filter(None, [*hidden, key]))
        return os.environ[key]
    if not default:
        raise KeyError(f"Environment variable '{key}' not found")
    return None if default[0] is None else str(default[0])


def protect_output() -> None:
    """Hides secrets in all log records, of any library, and in the traceback that may end this process."""
    logging.setLogRecordFactory(_CleanRecord)
    sys.excepthook = _show_error


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")


class _CleanRecord(logging.LogRecord):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if self.exc_info and self.exc_info[0]:
            # A formatter uses `exc_text` if it is set, and formats the exception itself otherwise.
            self.exc_text = redact("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:  # noqa: N802  # logging's own name
        return redact(super().getMessage())


def is_secret(key: str) -> bool:
    """Whether a key such as ``storage.password`` names a secret."""
    return bool(_SECRET_KEY.search(key))


def redact(text: str) -> str:
    """Replaces user and password of addresses, secret query parameters, tokens and secret environment values.

    Args:
        text: An address, or any other text.
    """
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """Returns `redact` for many texts: it reads the secrets of the environment only once."""
    secrets = _environment_secrets()

    def clean(text: str) -> str:
        for value in secrets:
            text = text.replace(value, HIDDEN)
        # The checks in front of the expressions save time: every log line and recorded text passes here.
        if "://" in text:
            text = _USERINFO.sub(f"{HIDDEN}@", text)
        if "=" in text:
            text = _QUERY.sub(lambda match: f"{match['key']}{HIDDEN}", text)
        return _TOKEN.sub(HIDDEN, text) if any(start in text for start in _TOKEN_STARTS) else text

    return clean


def redact_assignments(text: str) -> str:
    """Does what `redact` does, and hides values of ``password=...`` and the like (command lines, diffs)."""
    return redact(_ASSIGNED.sub(lambda match: f"{match['key']}{HIDDEN}", text))


def redact_command(arguments: list[str]) -> str:
    """Joins a command line without its secrets; a secret may be the word after its option."""
    import shlex

    hide_next, shown = False, []
    for argument in arguments:
        shown.append(HIDDEN if hide_next else redact_assignments(argument))
        hide_next = argument.startswith("-") and "=" not in argument and is_secret(argument)
    return shlex.join(shown).replace(f"'{HIDDEN}'", HIDDEN)


@functools.cache
def _names_secret(variable: str) -> bool:
    return is_secret(variable) and variable not in _FOLDERS


def _environment_secrets() -> list[str]:
    named = {os.environ[key] for key in os.environ if _names_secret(key)}
    # Shorter values, such as "1" or "none", occur in ordinary text.
    secrets = {value for value in named if len(value) >= 8}
    for key in os.environ.get(HIDE, "").split(","):
        secrets |= {part for part in _hidden_parts(os.environ.get(key, "")) if len(part) >= 6 and not part.isdecimal()}
    # In an address a secret is quoted. The longest is replaced first, since it may contain a shorter one.
    return sorted(secrets | {quote(value, safe="") for value in secrets}, key=len, reverse=True)


def _hidden_parts(value: str) -> set[str]:
    """Returns the parts of a variable's value to hide: user, password and query of an address, no existing path."""
    if "://" not in value:
        return set() if os.sep in value and Path(value).exists() else {value}
    try:
        address = urlsplit(value)
        return {unquote(part) for part in (address.username, address.password, address.query) if part}
    except ValueError:
        return {value}
