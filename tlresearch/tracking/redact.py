"""Keeps secrets out of everything that is recorded or printed: addresses, params, diffs."""

from __future__ import annotations

import functools
import os
import re

HIDDEN = "***"
_FOLDERS = ("PWD", "OLDPWD")  # environment variables that only look like secrets

# A secret is named by the last word of its key: `api_token` is one, `max_tokens` and `tokenizer` are not.
_WORD = (
    r"(?:password|passwd|pwd|passphrase|secret|token|credentials?|"
    r"(?:api|access|private|secret|account|encryption)[_-]?key|apikey)"
)
_SECRET_KEY = re.compile(rf"(?:^|[._\s/-]){_WORD}$", re.IGNORECASE)
# The part behind "//" up to "@". A password may itself hold "@" or "/"; a port in front of a path is no user.
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
_KNOWN = re.compile(
    r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|hf_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|dapi[0-9a-f]{32}|"
    r"sk-[A-Za-z0-9_-]{20,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,})|"
    r"(?<=Bearer )\S+|(?<=Basic )[A-Za-z0-9+/=]{8,}"
)


def is_secret(key: str) -> bool:
    """Whether a key such as ``storage.password`` names a secret."""
    return bool(_SECRET_KEY.search(key))


def redact(text: str) -> str:
    """Replaces user and password of addresses, secret query parameters, tokens and secret environment values.

    Args:
        text: An address, or any text that may hold some.
    """
    for value in _environment_secrets():
        text = text.replace(value, HIDDEN)
    text = _USERINFO.sub(f"{HIDDEN}@", text)
    text = _QUERY.sub(lambda found: f"{found['key']}{HIDDEN}", text)
    return _KNOWN.sub(HIDDEN, text)


def redact_assignments(text: str) -> str:
    """As `redact`, and replaces the value of ``password=...`` and the like too (command lines, diffs)."""
    return redact(_ASSIGNED.sub(lambda found: f"{found['key']}{HIDDEN}", text))


def redact_command(arguments: list[str]) -> str:
    """Joins a command line without its secrets, also one that is the word after its option."""
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
    values = {os.environ.get(key, "") for key in os.environ if _names_secret(key)}
    # Shorter values ("1", "none") would tear ordinary text apart.
    return sorted((value for value in values if len(value) >= 8), key=len, reverse=True)
