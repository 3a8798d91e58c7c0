"""The command line: one function per command. Everything heavy is imported inside, so that --help is instant."""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tlresearch.errors import UserError
from tlresearch.ranks import is_leader

if TYPE_CHECKING:
    from rich.console import Console

    from tlresearch.experiment import RunResult
    from tlresearch.seeds import GroupResult

OVERRIDES = "values by full key, such as optimizer.lr=3e-3; `tlresearch config` lists them all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 (a result not reached) or 2 (bad input)."""
    options = _parse(arguments)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that data sets, backbones and tasks of one's own are found
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line; overrides may stand before and behind options, which argparse does not see by itself."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") or "=" not in word for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def run(options: argparse.Namespace) -> int:
    """Runs one experiment, once or with each of its seeds."""
    from tlresearch.config.load import load_experiment

    loaded = load_experiment(options.experiment, options.overrides)
    console = _console()
    console.print(f"[bold]{loaded.config.name}[/bold]  {loaded.source}", highlight=False)
    result: RunResult | GroupResult
    if loaded.config.seeds:
        from tlresearch.seeds import fit_group
        from tlresearch.summary import group_summary

        result = fit_group(loaded, console=console)
        console.print(group_summary(result))
    else:
        from tlresearch.experiment import fit
        from tlresearch.summary import run_summary

        result = fit(loaded, console=console)
        console.print(run_summary(result))
    console.print(f"MLflow run {result.run_id}; see it with: make ui", highlight=False)
    return 0


def sweep(options: argparse.Namespace) -> int:
    """Runs a sweep, or continues it."""
    from tlresearch.config.load import load_sweep

    loaded = load_sweep(options.sweep, options.overrides)
    console = _console()
    from tlresearch.sweep import run as run_sweep
    from tlresearch.sweep_report import print_result

    print_result(console, run_sweep(loaded, console=console))
    return 0


def reproduce(options: argparse.Namespace) -> int:
    """Runs a published experiment and holds it against its numbers, or repeats a recorded run."""
    if bool(options.what) == options.all:
        raise UserError("reproduce: name a published experiment or a run id, or give --all")
    console = _console()
    if options.all and options.overrides:
        raise UserError("reproduce: --all takes no overrides: the scoreboard is of the experiments as they are written")
    if options.what and _is_run_id(options.what):
        from tlresearch.repeat import repeat_run

        return repeat_run(options.what, anyway=options.anyway, console=console).exit_code
    from tlresearch import reproduce as published

    if options.all:
        results = published.reproduce_all(again=options.again, slow=options.slow, console=console)
        console.print(f"written to {published.PAGE}", highlight=False)
        return int(not all(result.reached for result in results))
    result = published.reproduce(
        options.what, options.overrides, variants=options.variant, again=options.again, console=console
    )
    if result.run_id:
        console.print(f"MLflow run {result.run_id}; see it with: make ui", highlight=False)
    return int(not result.reached)


def _is_run_id(text: str) -> bool:
    """Tells a run id, or its beginning, from the name of an experiment."""
    return re.fullmatch(r"[0-9a-f]{8,32}", text) is not None and not Path("experiments", f"{text}.yaml").is_file()


def compare(options: argparse.Namespace) -> int:
    """Compares recorded runs."""
    from tlresearch.compare import compare_runs, compare_sweep
    from tlresearch.compare_table import print_comparison

    if bool(options.runs) == bool(options.sweep):
        raise UserError("compare: name two or more runs, or --sweep NAME")
    console = _console()
    comparison = compare_sweep(options.sweep, top=options.top) if options.sweep else compare_runs(options.runs)
    print_comparison(console, comparison)
    console.print(f"side by side in the UI (make ui): {comparison.url}", highlight=False, soft_wrap=True)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Checks a recorded run without training: artifacts, data, weights, and what its model says."""
    from tlresearch.verify import verify_run

    return verify_run(options.run, console=_console()).exit_code


def inspect(options: argparse.Namespace) -> int:
    """Shows the stages of a backbone, or the plan of an experiment, before anything trains."""
    from tlresearch.inspect import inspect_anything

    inspect_anything(options.what, options.overrides, _console())
    return 0


def config(options: argparse.Namespace) -> int:
    """Lists every option, or shows an experiment's whole config."""
    if options.experiment:
        from tlresearch.config.load import load_experiment

        print(load_experiment(options.experiment, options.overrides).recorded, end="")
        return 0
    from tlresearch.config.reference import as_table

    _console().print(as_table())
    return 0


def ui(options: argparse.Namespace) -> int:
    """Serves the MLflow UI on this machine."""
    from tlresearch.tracking.ui import serve

    return serve(port=options.port, host=options.host)


def cache(options: argparse.Namespace) -> int:
    """Lists, checks or removes stored activations."""
    import shutil

    from tlresearch.activations.listing import as_table, find_entries
    from tlresearch.activations.store import default_store

    store = default_store()
    console = _console()
    entries = find_entries(store, options.entries)
    if options.action == "rm":
        for entry in entries:
            shutil.rmtree(entry.path, ignore_errors=True)
        console.print(f"removed {len(entries)} entries, {sum(entry.size for entry in entries) / 1e9:.2f} GB")
        return 0
    if options.action == "verify":
        damaged = [entry.key for entry in entries if not store.verify(entry)]
        console.print(f"{len(entries) - len(damaged)} entries are sound, {len(damaged)} were damaged and removed")
        return 1 if damaged else 0
    console.print(as_table(store))
    return 0


def demo(options: argparse.Namespace) -> int:
    """Runs the main job on digits that ship with scikit-learn."""
    from tlresearch.demo import run_demo

    run_demo(_console(), trials=options.trials)
    return 0


def _console() -> Console:
    from rich.console import Console

    return Console(quiet=not is_leader())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tlresearch",
        description="Transfer-learning research: which backbone, how deep to unfreeze, at which learning rates.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function: Callable[[argparse.Namespace], int], example: str) -> argparse.ArgumentParser:
        summary = (function.__doc__ or "").strip()
        command = commands.add_parser(
            function.__name__,
            help=summary,
            description=summary,
            epilog="example:\n" + textwrap.indent(example, "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function)
        return command

    command = add(run, "tlresearch run hymenoptera/linear_probe optimizer.lr=3e-3")
    command.add_argument("experiment", help="name under experiments/, or a YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)

    command = add(sweep, "tlresearch sweep hymenoptera/lr_x_unfreeze_depth trials=40")
    command.add_argument("sweep", help="name under sweeps/, or a YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="values of the sweep, such as trials=40")

    command = add(
        reproduce,
        "tlresearch reproduce hymenoptera/squeezenet\ntlresearch reproduce --all\ntlresearch reproduce 3f2a9c1b",
    )
    command.add_argument("what", nargs="?", help="experiment with a reference, or the id of a run to repeat")
    command.add_argument("overrides", nargs="*", metavar="key=value", help=f"{OVERRIDES}; the verdict says so")
    command.add_argument("--variant", action="append", default=[], metavar="NAME", help="only this variant; repeatable")
    command.add_argument("--again", action="store_true", help="run again what has finished before")
    command.add_argument("--all", action="store_true", help="every published experiment; writes REPRODUCED.md")
    command.add_argument("--slow", action="store_true", help="with --all: also what is marked as slow")
    command.add_argument("--anyway", action="store_true", help="repeat a run although its data or weights have changed")

    command = add(compare, "tlresearch compare 3f2a 9c1b\ntlresearch compare --sweep hymenoptera/lr_x_unfreeze_depth")
    command.add_argument("runs", nargs="*", metavar="RUN", help="run ids, unique beginnings of them, or run names")
    command.add_argument("--sweep", help="compare the trials of this sweep")
    command.add_argument("--top", type=int, default=10, help="trials of a sweep that are shown (default 10)")

    command = add(verify, "tlresearch verify 3f2a9c1b")
    command.add_argument("run", help="run id, unique beginning of it, or run name")

    command = add(inspect, "tlresearch inspect torchvision/resnet50\ntlresearch inspect hymenoptera/gradual")
    command.add_argument("what", help="a backbone such as torchvision/resnet50, or an experiment")
    command.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)

    command = add(config, "tlresearch config\ntlresearch config hymenoptera/linear_probe")
    command.add_argument("experiment", nargs="?", help="show this experiment with all defaults filled in")
    command.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)

    command = add(ui, "tlresearch ui --port 5001")
    command.add_argument("--port", type=int, default=5000, help="port (default 5000)")
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )

    command = add(cache, "tlresearch cache ls\ntlresearch cache rm 3f2a9c1b\ntlresearch cache verify")
    command.add_argument("action", choices=["ls", "rm", "verify"], help="list, remove, or check the hashes")
    command.add_argument("entries", nargs="*", metavar="ENTRY", help="beginnings of keys (default: all entries)")

    command = add(demo, "tlresearch demo")
    command.add_argument("--trials", type=int, default=20, help="trials of the sweep (default 20)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
