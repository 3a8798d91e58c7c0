"""The command line: one function per command. Everything heavy is imported inside, so that --help is instant."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tlresearch.errors import UserError
from tlresearch.ranks import is_leader

if TYPE_CHECKING:
    from rich.console import Console

OVERRIDES = "values by full key, such as optimizer.lr=3e-3; `tlresearch config` lists them all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 (a result not reached) or 2 (bad input)."""
    options = _parser().parse_args(arguments)
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


def run(options: argparse.Namespace) -> int:
    """Runs one experiment."""
    from tlresearch.config.load import load_experiment

    loaded = load_experiment(options.experiment, options.overrides)
    console = _console()
    from tlresearch.experiment import fit
    from tlresearch.summary import run_summary

    console.print(f"[bold]{loaded.config.name}[/bold]  {loaded.source}", highlight=False)
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


def compare(options: argparse.Namespace) -> int:
    """Compares recorded runs."""
    from tlresearch.compare import compare_runs, compare_sweep, render

    if bool(options.runs) == bool(options.sweep):
        raise UserError("compare: name two or more runs, or --sweep NAME")
    console = _console()
    comparison = compare_sweep(options.sweep, top=options.top) if options.sweep else compare_runs(options.runs)
    console.print(render(comparison))
    console.print(f"side by side in the UI (make ui): {comparison.url}", highlight=False, soft_wrap=True)
    return 0


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

    from rich.table import Table

    from tlresearch.activations.store import default_store

    store = default_store()
    console = _console()
    entries = store.entries()
    if options.action == "rm":
        for entry in entries:
            shutil.rmtree(entry.path, ignore_errors=True)
        console.print(f"removed {len(entries)} entries, {sum(entry.size for entry in entries) / 1e9:.2f} GB")
        return 0
    if options.action == "verify":
        damaged = [entry.key for entry in entries if not store.verify(entry)]
        console.print(f"{len(entries) - len(damaged)} entries are sound, {len(damaged)} were damaged and removed")
        return 1 if damaged else 0
    table = Table("entry", "split", "boundary", "stages", "MB", title=str(store.root), title_justify="left")
    for entry in entries:
        about = entry.about
        stages = ", ".join(about["stages"]) or "network inputs"
        table.add_row(entry.key[:8], about["split"], str(about["boundary"]), stages, f"{entry.size / 1e6:.1f}")
    console.print(table)
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

    command = add(compare, "tlresearch compare 3f2a 9c1b\ntlresearch compare --sweep hymenoptera/lr_x_unfreeze_depth")
    command.add_argument("runs", nargs="*", metavar="RUN", help="run ids, unique beginnings of them, or run names")
    command.add_argument("--sweep", help="compare the trials of this sweep")
    command.add_argument("--top", type=int, default=10, help="trials of a sweep that are shown (default 10)")

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

    command = add(cache, "tlresearch cache ls\ntlresearch cache verify")
    command.add_argument("action", choices=["ls", "rm", "verify"], help="list, remove all, or check the hashes")

    command = add(demo, "tlresearch demo")
    command.add_argument("--trials", type=int, default=20, help="trials of the sweep (default 20)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
