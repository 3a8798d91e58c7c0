"""How long the commands take that need no torch.

python -m benchmarks.startup --write
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from benchmarks.contest import ROOT, arguments, surroundings, write

COMMANDS = {
    "`tlresearch --help`": (["--help"], 0, 0.5),
    "an unknown key": (["run", "digits/transfer", "optimizer.lrr=1"], 2, 2.0),
    "an unknown experiment": (["run", "no/such"], 2, 2.0),
    "`tlresearch config`": (["config"], 0, 2.0),
}


def main() -> None:
    """Times each command and prints the table."""
    parser = arguments(__doc__)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for name, (words, expected, bound) in COMMANDS.items():
            seconds = []
            for _ in range(max(5, options.repeats)):
                began = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-m", "tlresearch", *words],
                    cwd=ROOT,
                    env={**os.environ, "TLRESEARCH_HOME": home},
                    capture_output=True,
                )
                seconds.append(time.perf_counter() - began)
                assert done.returncode == expected, done.stderr.decode()
            rows.append(f"| {name} | {min(seconds):.2f} | {sorted(seconds)[len(seconds) // 2]:.2f} | {bound} |")
    text = [
        "# Start-up",
        "",
        "Seconds of the whole process, warm disk.",
        "",
        "| command | fastest | median | bound |",
        "| :-- | ---: | ---: | ---: |",
        *rows,
        "",
        surroundings(),
        "",
    ]
    write(__file__, "\n".join(text), save=options.write)


if __name__ == "__main__":
    main()
