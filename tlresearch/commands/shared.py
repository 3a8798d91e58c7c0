"""What several commands say or need."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from tlresearch.base.ranks import is_leader
from tlresearch.base.redact import redact

if TYPE_CHECKING:
    from rich.console import Console

OVERRIDES = "values by full key, such as optimizer.lr=3e-3; `tlresearch config` lists them all"


def console_of_leader() -> Console:
    """Returns the terminal, which is shown no secret; of several processes of one run, only the first writes to it."""
    from rich.console import Console

    return Console(file=cast(Any, _Clean(sys.stdout)), quiet=not is_leader())


def warn_if_open(host: str) -> None:
    """Says on the terminal's error stream that a server answers others than this machine."""
    if host not in ("localhost", "::1") and not host.startswith("127."):
        print(f"warning: on {host} everybody in the network can ask, without a password; 127.0.0.1 is this machine "
              "alone (docs/security.md)", file=sys.stderr, flush=True)  # fmt: skip


class _Clean:
    """A stream in which secrets are hidden."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> Any:
        return self._stream.write(redact(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
