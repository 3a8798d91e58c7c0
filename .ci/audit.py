"""Says whether a locked package has a known vulnerability: exit code 1 if one has, 0 if none has or nobody can tell.

    python .ci/audit.py PIP_AUDIT LOCK

The service that knows is asked for a minute at most. Where it cannot be reached, a build does not fail for it: the
output says how many packages were checked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SECONDS = 60


def ask(tool: str, lock: str) -> dict[str, Any] | None:
    """The answer of pip-audit about a file of pinned and hashed requirements; ``None`` if there is none."""
    command = [tool, "--disable-pip", "--require-hashes", "-r", lock, "-f", "json"]
    command += ["--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        answer: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return answer


def verdict(answer: dict[str, Any] | None) -> tuple[int, str]:
    """Exit code, and what to print."""
    packages = answer["dependencies"] if answer else []
    checked = [package for package in packages if "vulns" in package]
    if not checked:
        return 0, "audit: NOTHING WAS CHECKED: the service that knows of vulnerabilities cannot be reached from here"
    found = [
        f"  {package['name']} {package['version']}: {flaw['id']}, mended in {' '.join(flaw['fix_versions']) or '-'}"
        for package in checked
        for flaw in package["vulns"]
    ]
    if found:
        return 1, "\n".join([f"audit: {len(found)} known vulnerabilities; raise the versions with make lock", *found])
    left = len(packages) - len(checked)
    return 0, f"audit: {len(checked)} packages, no known vulnerability" + (
        f"; {left} could not be checked" if left else ""
    )


if __name__ == "__main__":
    code, text = verdict(ask(*sys.argv[1:3]))
    print(text)
    sys.exit(code)
