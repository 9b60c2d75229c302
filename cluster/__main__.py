"""The command line: edge-opd run | probe | data | shards | report | view | ... (`edge-opd --help`).

Exit 0: success. 2: bad input, in one line. 1: a failure, with component and step. 75: stopped as asked, to be resumed.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.errors import EXPECTED, INTERRUPTED, PREEMPTED, Preempted, explained
from cluster.own_files import add_follow, require_own_files
from rollout.ending import end_uncollected

RUN, REGION = "the folder of a run, such as runs/NAME", "pos, neg, near_zero or all: which tokens the mask keeps"


def main(argv: Sequence[str] | None = None) -> int:
    end_uncollected()
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # DeepSpeed looks for ninja on PATH; it is beside the interpreter, also where the environment is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        require_own_files(vars(arguments))
        return int(arguments.act(arguments))
    except (Preempted, KeyboardInterrupt) as stop:
        print(f"edge-opd: {str(stop) or 'interrupted'}", file=sys.stderr)
        return PREEMPTED if isinstance(stop, Preempted) else INTERRUPTED
    except (BaseExceptionGroup, *EXPECTED) as error:
        lines, status = explained(error)
        print("\n".join(f"edge-opd: {line}" for line in lines), file=sys.stderr)
        return status


def _run(arguments: argparse.Namespace) -> int:
    from cluster.commands.run import run

    resume = None if arguments.resume_auto else arguments.resume
    return run(arguments.recipe, arguments.set, arguments.run_dir, resume)


def _probe(arguments: argparse.Namespace) -> int:
    from cluster.commands.probe import print_probe
    from cluster.commands.probe_server import ServerOptions

    server = ServerOptions(arguments.model, arguments.timeout, arguments.omit)
    return print_probe(arguments.source, arguments.task, arguments.set, server, arguments.json)


def _gap(arguments: argparse.Namespace) -> int:
    from cluster.commands.gap import print_gap

    return print_gap(arguments.recipe, arguments.set)


def _data_openthoughts(arguments: argparse.Namespace) -> int:
    from cluster.commands.data import to_text, write_openthoughts

    out = Path(arguments.out)
    print(to_text(write_openthoughts(Path(arguments.source), out, arguments.limit, arguments.seed), out))
    return 0


def _data_check(arguments: argparse.Namespace) -> int:
    from cluster.commands.data_check import print_check

    return print_check(arguments.rows, arguments.probe, arguments.recipe, arguments.set, arguments.row)


def _shards(arguments: argparse.Namespace) -> int:
    from cluster.commands.shards import statistics, to_text

    result = statistics(Path(arguments.dir), arguments.tau, arguments.region, arguments.tau_kind, arguments.follow)
    print(json.dumps(result) if arguments.json else to_text(result))
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    from cluster.commands.reproduce import print_reproduction

    return print_reproduction(arguments.axis or ["identity"], arguments.seeds, Path(arguments.dir), arguments.set)


def _sweep(arguments: argparse.Namespace) -> int:
    from cluster.commands.sweep import print_sweep

    return print_sweep(Path(arguments.sweep), arguments.dir, arguments.jobs, arguments.set)


def _report(arguments: argparse.Namespace) -> int:
    from cluster.report.write import write_report

    print(write_report([Path(run) for run in arguments.runs], Path(arguments.out), arguments.follow))
    return 0


def _view(arguments: argparse.Namespace) -> int:
    from cluster.commands.view import Asked, view_all, view_run

    run, asked = Path(arguments.run), Asked(arguments.tau, arguments.region, arguments.prompt, arguments.follow)
    print(view_all(run, asked, arguments.out) if arguments.all else view_run(run, arguments.step, asked, arguments.out))
    return 0


def _dashboard(arguments: argparse.Namespace) -> int:
    from cluster.dashboard.page import write_dashboard

    print(write_dashboard([Path(run) for run in arguments.runs], arguments.out))
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    from cluster.observe.chrome import write_trace

    print(write_trace(Path(arguments.run), arguments.out))
    return 0


def _export_metrics(arguments: argparse.Namespace) -> int:
    from cluster.observe.openmetrics import export_metrics

    print(export_metrics(Path(arguments.run), arguments.out))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from cluster.commands.export import export_run

    return _printed(lambda: export_run(Path(arguments.run)))


def _printed(make: Callable[[], object]) -> int:
    """Alone on standard output, where libraries that it loads would greet."""
    with contextlib.redirect_stdout(sys.stderr):
        made = make()
    print(made)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from cluster.commands import doctor, doctor_gpu

    return doctor.print_report(doctor_gpu.gpu_findings() if arguments.gpu else ())


def _model(arguments: argparse.Namespace) -> int:
    from cluster.default_model import prepare_default_model

    return _printed(prepare_default_model)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-opd", description="Evidence-guided on-policy distillation.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (text, act, add_arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        add_arguments(command)
        command.set_defaults(act=act)
    return parser


def _run_arguments(run: argparse.ArgumentParser) -> None:
    _recipe_arguments(run)
    run.add_argument("--run-dir", metavar="DIR", help="default: runs/NAME")
    run.add_argument("--resume", action="store_true", help="continue from the newest checkpoint, and from shards")
    run.add_argument("--resume=auto", action="store_true", dest="resume_auto", help="the same, or begin where none is")


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.toml", help="such as cluster/recipes/local-smoke.toml")
    _add_set(parser)


def _probe_arguments(probe: argparse.ArgumentParser) -> None:
    probe.add_argument("source", metavar="MODEL_OR_RUN", help="folder, hub id, run, 'default' or http://HOST:PORT/v1")
    probe.add_argument("--task", default="identity", metavar="T", help="task.name of a model (default identity)")
    probe.add_argument("--model", metavar="NAME", help="which of a server's models (default: its only one)")
    probe.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds for a request (default 120)")
    omit = "of the keys of a request, those that a server refuses: seed,max_tokens (then max_completion_tokens is sent)"
    probe.add_argument("--omit", metavar="KEY,...", type=lambda keys: keys.split(","), default=[], help=omit)
    probe.add_argument("--json", action="store_true", help="print one JSON object")
    _add_set(probe)


def _data_arguments(data: argparse.ArgumentParser) -> None:
    parts = data.add_subparsers(required=True, metavar="openthoughts|check")
    filtered = parts.add_parser("openthoughts", help="filter OpenThoughts-114K to the math task's training rows")
    filtered.add_argument("source", metavar="IN.parquet", help="OpenThoughts-114K, either layout; a file or a folder")
    filtered.add_argument("out", metavar="OUT.jsonl", help="training rows for task.prompts_file")
    filtered.add_argument("--limit", type=int, default=8000, help="rows to keep, after shuffling (default 8000)")
    filtered.add_argument("--seed", type=int, default=0, help="of the shuffle (default 0)")
    filtered.set_defaults(part=_data_openthoughts)
    check = parts.add_parser("check", help="what rows of the task context become, and what is wrong with them")
    check.add_argument("rows", metavar="FILE", help="training rows, JSON lines or parquet")
    check.add_argument("--probe", metavar="FILE", default="", help="probe rows (default: the recipe's)")
    check.add_argument("--row", type=int, metavar="N", help="the row to show, by its line (default: the first)")
    check.add_argument("--recipe", metavar="RECIPE.toml", help="the model, windows and columns (default: the defaults)")
    _add_set(check)
    check.set_defaults(part=_data_check)


def _shards_arguments(shards: argparse.ArgumentParser) -> None:
    shards.add_argument("dir", metavar="DIR", help="a run or a folder of shards")
    shards.add_argument("--json", action="store_true", help="print one JSON object")
    shards.add_argument("--tau", type=float, metavar="T", help="recompute the mask with this threshold")
    shards.add_argument("--tau-kind", metavar="K", help="value (nats) or quantile (of a step's evidence)")
    shards.add_argument("--region", metavar="R", help=REGION)
    add_follow(shards)


def _reproduce_arguments(reproduce: argparse.ArgumentParser) -> None:
    reproduce.add_argument("--axis", action="append", help="identity (default), arithmetic or facts; repeatable")
    reproduce.add_argument("--seeds", type=int, default=1, help="runs of each arm (default 1)")
    reproduce.add_argument("--dir", default="runs/reproduce", help="where runs and report go (default runs/reproduce)")
    _add_set(reproduce)


def _sweep_arguments(sweep: argparse.ArgumentParser) -> None:
    sweep.add_argument("sweep", metavar="SWEEP.toml", help="a recipe, what is varied, and seeds")
    sweep.add_argument("--dir", help="where runs, logs and the table go (default runs/NAME)")
    sweep.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    _add_set(sweep)


def _report_arguments(report: argparse.ArgumentParser) -> None:
    report.add_argument("runs", metavar="RUN", nargs="+", help="run directories; seeds of one arm are pooled")
    report.add_argument("--out", metavar="DIR", default="report", help="default: report")
    add_follow(report)


def _view_arguments(view: argparse.ArgumentParser) -> None:
    view.add_argument("run", metavar="RUN", help=RUN)
    which = view.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="K", help="from 0: step 1 of the console is 0; default: the last")
    which.add_argument("--all", action="store_true", help="a page for each step, in RUN/view, beside it or in --out")
    view.add_argument("--prompt", metavar="P", help="all rollouts of one prompt, each to its end")
    view.add_argument("--tau", type=float, metavar="T", help="show the mask with this threshold")
    view.add_argument("--region", metavar="R", help=REGION)
    view.add_argument("--out", type=Path, metavar="FILE.html", help="default: view-RUN-step-K.html here")
    add_follow(view)


def _dashboard_arguments(dashboard: argparse.ArgumentParser) -> None:
    dashboard.add_argument("runs", metavar="RUN", nargs="+", help="run directories; several are laid over each other")
    dashboard.add_argument("--out", type=Path, metavar="FILE.html", help="default: dashboard-RUN.html here")
    add_follow(dashboard)


def _to_file(kind: str, suffix: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", help=RUN)
        parser.add_argument("--out", type=Path, metavar=f"FILE.{suffix}", help=f"default: {kind}-RUN.{suffix} here")
        add_follow(parser)

    return add


def _export_arguments(export: argparse.ArgumentParser) -> None:
    export.add_argument("run", metavar="RUN", help="whose model and prompts are read from where its recipe names them")
    add_follow(export, "checkpoints")


def _doctor_arguments(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument("--gpu", action="store_true", help="look at the GPUs, their driver and NCCL too")


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="table.key=value", help="override a recipe key")


# name: what it does, in a line; what acts on its arguments; what adds them
COMMANDS: dict[str, tuple[str, Callable[[argparse.Namespace], int], Callable[[argparse.ArgumentParser], object]]] = {
    "run": ("run a recipe: roll out, score, mask, learn, push, probe, export", _run, _run_arguments),
    "probe": ("sample a model's answers without context and rate them", _probe, _probe_arguments),
    "gap": ("what a recipe's teacher shows with its context, before anything is trained", _gap, _recipe_arguments),
    "data": ("check rows of one's own; filter a dataset to math rows", lambda of: int(of.part(of)), _data_arguments),
    "shards": ("statistics of a run's shards; recompute a mask without an engine", _shards, _shards_arguments),
    "reproduce": ("run the published matrix's arms that are missing, and report", _reproduce, _reproduce_arguments),
    "sweep": ("run a recipe with settings varied, and one table of all runs", _sweep, _sweep_arguments),
    "report": ("finished runs, beside the published figures, as one page", _report, _report_arguments),
    "view": ("a step's rollouts as a heat map of token evidence", _view, _view_arguments),
    "dashboard": ("one page of a run, or of several, that needs no server", _dashboard, _dashboard_arguments),
    "trace": ("a run's timeline for Perfetto and Chrome", _trace, _to_file("trace", "json")),
    "export-metrics": ("a run's figures as OpenMetrics", _export_metrics, _to_file("metrics", "txt")),
    "export": ("write the model of a run's newest checkpoint", _export, _export_arguments),
    "doctor": ("what this machine has, what will be used, what is wrong", _doctor, _doctor_arguments),
    "model": ("prepare the default model and print its folder", _model, lambda parser: None),
}


if __name__ == "__main__":
    sys.exit(main())
