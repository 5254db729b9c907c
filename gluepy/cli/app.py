"""The commands and their options, as typer reads them from functions; each hands over to a module imported for it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gluepy.cli.group import CommandLine
from gluepy.cli.invocation import Invocation, program_words
from gluepy.version import VERSION

_HELP = """Run pipelines: tasks written as plain Python classes, put in order by a DAG.

\b
  gluepy startproject shop     make a project that runs
  gluepy run train             run the DAG labelled 'train'
  gluepy run train -P year=2026 --concurrency 4
  gluepy run file.py:TrainDAG  run a DAG from a file, without a project
  gluepy resume latest         go on with the newest run, if it failed
  gluepy show latest           how the newest run went

The project is the one around the current folder, or around --project DIR; its settings module is settings.py, or
--settings MODULE.
"""

app = typer.Typer(
    name="gluepy",
    cls=CommandLine,
    help=_HELP,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gluepy {VERSION}")
        raise typer.Exit


def _complete_label(ctx: typer.Context, incomplete: str) -> list[str]:
    from gluepy.conf.dags import list_dags
    from gluepy.errors import GluepyError

    try:
        labels = [dag.label for dag in list_dags(_invocation(ctx).settings())]
        return [label for label in labels if label.startswith(incomplete)]
    except GluepyError:
        return []


def _complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    from gluepy.errors import GluepyError
    from gluepy.runs.record import run_names

    try:
        names = sorted(run_names(_invocation(ctx).settings().runs_root), reverse=True)
    except GluepyError:
        return []
    return [name for name in ("latest", *names) if name.startswith(incomplete)]


Label = Annotated[
    str,
    typer.Argument(
        metavar="LABEL",
        help="The DAG: its label in this project, or file.py:TrainDAG, or package.module:TrainDAG.",
        autocompletion=_complete_label,
        show_default=False,
    ),
]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="The run: its id, the end of its id, 'latest', or 'latest:LABEL'.",
        autocompletion=_complete_run,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]

# What everything has that runs tasks.
Concurrency = Annotated[
    int | None,
    typer.Option("--concurrency", "-c", metavar="N", min=1, help="Run at most N tasks at a time. [CONCURRENCY]"),
]
ExecutorName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Where tasks run: the dotted path of a class, or the short name of an installed one. [EXECUTOR_BACKEND]",
    ),
]
SinkName = Annotated[
    list[str] | None,
    typer.Option(
        "--sink",
        metavar="NAME",
        help="Send the events to this sink too: a dotted path, or the short name of an installed one. Repeatable.",
    ),
]
Pool = Annotated[
    str | None,
    typer.Option(metavar="POOL", help="Where a plain task runs that does not say: thread or process. [POOL]"),
]
Param = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-P",
        metavar="NAME=VALUE",
        help="Set a parameter of the context: VALUE is JSON, else text; model.depth=3 reaches into 'model'. "
        "Repeatable.",
    ),
]
Params = Annotated[
    str | None, typer.Option(metavar="FILE", help="Set parameters from a YAML or JSON file; --param goes over it.")
]
SkipEvaluation = Annotated[bool, typer.Option("--skip-evaluation", help="Leave out the DAG's `evaluation`.")]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", "-k", help="After a failure, go on with all that does not depend on it.")
]
FailFast = Annotated[
    bool, typer.Option("--fail-fast", help="After a failure, stop what runs. (Default: let it end, start no more.)")
]
Timeout = Annotated[float | None, typer.Option(metavar="S", help="Stop the run after S seconds.")]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Run one task at a time in this process, uncaptured, so that breakpoint() works."),
]
ResultAsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout, and nothing else there.")
]
EventsFile = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Write the events as JSON lines; '-' is stdout, which then gets nothing else."),
]
Progress = Annotated[
    str,
    typer.Option(
        metavar="MODE", help="How to show progress: live, plain or none; auto is live on a terminal, else plain."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


@app.callback()
def gluepy(
    ctx: typer.Context,
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            "-C",
            metavar="DIR",
            help="Take the project in DIR, or the nearest above it, instead of the one around the current folder.",
            is_eager=True,  # so that `--project DIR --help` shows that project's own commands
        ),
    ] = None,
    settings: Annotated[
        str | None,
        typer.Option(
            "--settings",
            metavar="MODULE",
            help="Take the settings module MODULE of the project, instead of the one called settings.",
            is_eager=True,
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001  # its callback does it
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Run pipelines."""
    ctx.obj = Invocation(project, settings, program_words(sys.argv[0]))
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command()
def run(
    ctx: typer.Context,
    label: Label,
    concurrency: Concurrency = None,
    executor: ExecutorName = None,
    sink: SinkName = None,
    pool: Pool = None,
    param: Param = None,
    params: Params = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Run only this task, by id, or all tasks with this label. Repeatable."),
    ] = None,
    from_task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Run only this task and what comes after it.")
    ] = None,
    to_task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Run only this task and what comes before it.")
    ] = None,
    keep_going: KeepGoing = False,
    fail_fast: FailFast = False,
    skip_evaluation: SkipEvaluation = False,
    timeout: Timeout = None,
    run_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Name the run. (Default: a new UUID that sorts by time.)")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show what would run, and run nothing.")
    ] = False,
    debug: Debug = False,
    as_json: ResultAsJson = False,
    events: EventsFile = None,
    progress: Progress = "auto",
    quiet: Quiet = False,
    retry: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Go on with this run of the DAG, as `gluepy resume` does.",
            autocompletion=_complete_run,
        ),
    ] = None,
) -> None:
    """Run a DAG.

    Results go to stdout, progress to stderr; what tasks print goes to their log files (see `gluepy logs`). With
    --task, --from-task or --to-task, tasks that are not selected count as done.

    \b
      gluepy run train
      gluepy run train -P date=2026-01-01 -P model.depth=3 --concurrency 4
      gluepy run train --task fit --task 'score[region=eu]'
      gluepy run train --from-task fit --dry-run
      gluepy run train --json | jq .status

    Exit codes: 0 success; 1 the run failed; 2 a mistake in what was asked; 3 the run could not go on; 130 Ctrl-C;
    143 SIGTERM. The first Ctrl-C cancels cleanly, the second kills.
    """
    from gluepy.cli.running import RunCall
    from gluepy.cli.running import run as run_command

    call = RunCall(
        label=label,
        concurrency=concurrency,
        executor=executor,
        sink=sink or (),
        pool=pool,
        param=param or (),
        params=params,
        task=task or (),
        from_task=from_task,
        to_task=to_task,
        keep_going=keep_going,
        fail_fast=fail_fast,
        skip_evaluation=skip_evaluation,
        timeout=timeout,
        run_id=run_id,
        dry_run=dry_run,
        debug=debug,
        as_json=as_json,
        events=events,
        progress=progress,
        quiet=quiet,
    )
    if retry is not None:
        from gluepy.cli.resuming import retry as retry_command

        raise typer.Exit(retry_command(_invocation(ctx), call, retry))
    raise typer.Exit(run_command(_invocation(ctx), call))


app.command("dag", short_help="The same as `run`.")(run)


@app.command(short_help="Resume a run that failed, was cancelled or whose driver died.")
def resume(
    ctx: typer.Context,
    run: RunName = "latest",
    from_task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Run this task again, and what comes after it.")
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Run this task again too, and what comes after it. Repeatable."),
    ] = None,
    concurrency: Concurrency = None,
    executor: ExecutorName = None,
    sink: SinkName = None,
    pool: Pool = None,
    param: Param = None,
    params: Params = None,
    keep_going: KeepGoing = False,
    fail_fast: FailFast = False,
    skip_evaluation: SkipEvaluation = False,
    timeout: Timeout = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show which tasks would run again, which not and why, and run nothing.")
    ] = False,
    debug: Debug = False,
    as_json: ResultAsJson = False,
    events: EventsFile = None,
    progress: Progress = "auto",
    quiet: Quiet = False,
) -> None:
    """Resume a run that failed, was cancelled or whose driver died.

    It runs every task that has not finished, and every one after a task that runs again; what has finished stays,
    unless it is forced or its declared outputs are gone. It says first what runs again, and why. Options that are not
    given are as the run had them; settings are as they are now.

    \b
      gluepy resume                  the newest run
      gluepy resume latest:train     the newest run of 'train'
      gluepy resume 9f2c             the run whose id ends so
      gluepy resume latest --from-task fit -P model.depth=4
      gluepy resume --dry-run        what would run, and nothing else

    Exit codes are those of `gluepy run`.
    """
    from gluepy.cli.resuming import ResumeCall
    from gluepy.cli.resuming import resume as resume_command

    call = ResumeCall(
        run=run,
        from_task=from_task,
        force=force or (),
        concurrency=concurrency,
        executor=executor,
        sink=sink or (),
        pool=pool,
        param=param or (),
        params=params,
        keep_going=keep_going,
        fail_fast=fail_fast,
        skip_evaluation=skip_evaluation,
        timeout=timeout,
        dry_run=dry_run,
        debug=debug,
        as_json=as_json,
        events=events,
        progress=progress,
        quiet=quiet,
    )
    raise typer.Exit(resume_command(_invocation(ctx), call))


@app.command("list", short_help="List the DAGs of the project.")
def list_(
    ctx: typer.Context,
    check: Annotated[
        bool, typer.Option("--check", help="Import every module, and say of every DAG whether it is sound.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the DAGs of the project.

    They are read from its source: a module is imported only if that does not tell what DAGs it has. An `each` over
    values that are found at run time counts as one task.
    """
    from gluepy.cli.inspecting import show_dags

    raise typer.Exit(show_dags(_invocation(ctx), check, as_json))


@app.command(short_help="Show the tasks of a DAG and their dependencies.")
def graph(
    ctx: typer.Context,
    label: Label,
    format: Annotated[
        str, typer.Option("--format", "-f", metavar="FORMAT", help="How to show it: text, mermaid, dot or svg.")
    ] = "text",
) -> None:
    """Show the tasks of a DAG and what depends on what.

    \b
      gluepy graph train
      gluepy graph train --format mermaid
      gluepy graph train --format svg > train.svg
    """
    from gluepy.cli.inspecting import show_graph

    raise typer.Exit(show_graph(_invocation(ctx), label, format))


@app.command(short_help="Show every setting and where it came from.")
def settings(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show every setting: its value, and where it came from. Secrets are masked.

    Options go over variables GLUEPY_NAME, these over .env, over the settings module, over [tool.gluepy] in
    pyproject.toml, over defaults.
    """
    from gluepy.cli.inspecting import show_settings

    raise typer.Exit(show_settings(_invocation(ctx), as_json))


@app.command(short_help="Run the evaluation of a finished run again.")
def evaluate(
    ctx: typer.Context,
    run: RunName = "latest",
    concurrency: Concurrency = None,
    executor: ExecutorName = None,
    pool: Pool = None,
    param: Param = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and run nothing.")] = False,
    as_json: ResultAsJson = False,
    progress: Progress = "auto",
    quiet: Quiet = False,
) -> None:
    """Run the tasks of the DAG's `evaluation` again, as their code is now, on what a finished run has left.

    \b
      gluepy run train --skip-evaluation
      gluepy evaluate latest:train
    """
    from gluepy.cli.resuming import ResumeCall
    from gluepy.cli.resuming import resume as resume_command

    call = ResumeCall(
        run=run,
        evaluate=True,
        from_task=None,
        force=(),
        concurrency=concurrency,
        executor=executor,
        sink=(),
        pool=pool,
        param=param or (),
        params=None,
        keep_going=False,
        fail_fast=False,
        skip_evaluation=False,
        timeout=None,
        dry_run=dry_run,
        debug=False,
        as_json=as_json,
        events=None,
        progress=progress,
        quiet=quiet,
    )
    raise typer.Exit(resume_command(_invocation(ctx), call))


@app.command(short_help="List the runs, newest first.")
def runs(
    ctx: typer.Context,
    dag: Annotated[str | None, typer.Option(metavar="LABEL", help="Only runs of this DAG.")] = None,
    status: Annotated[
        str | None,
        typer.Option(metavar="STATUS", help="Only finished, failed, cancelled, running or interrupted ones."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=0, help="At most N runs; 0 lists all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array of objects on stdout.")] = False,
) -> None:
    """List the runs, newest first.

    A run without an end is running while its driver lives, and interrupted when it does not: `gluepy resume` goes on
    with it.

    \b
      gluepy runs --dag train --status failed
      gluepy runs --limit 0 --json | jq '.[].run_id'
    """
    from gluepy.cli.history import list_runs

    raise typer.Exit(list_runs(_invocation(ctx), dag, status, limit, as_json))


@app.command(short_help="Show how a run went.")
def show(
    ctx: typer.Context,
    run: RunName = "latest",
    task: Annotated[
        str | None,
        typer.Argument(metavar="[TASK]", help="Only this task, by id or label, and all of it.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write it as a page, one file that needs nothing else.")
    ] = None,
) -> None:
    """Show how a run went: its parameters; each task, its attempts, its time, its failure; metrics; a timeline.

    Of very many tasks, those with one label are one row, and those that failed or that run have rows of their own.

    The timeline has a bar for each task, its critical path (what the run had to wait for), how long tasks worked and
    waited for a slot or a limit, and what more concurrency would bring.

    \b
      gluepy show latest
      gluepy show latest 'fit[region=eu]'
      gluepy show latest --html run.html
    """
    from gluepy.cli.inspecting import show_run

    raise typer.Exit(show_run(_invocation(ctx), run, task, as_json, html))


@app.command(short_help="Write a page of the last runs of a DAG.")
def report(
    ctx: typer.Context,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="The DAG: its label.", autocompletion=_complete_label)],
    html: Annotated[str, typer.Option(metavar="FILE", help="The page: one file that needs nothing else.")],
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="The last N runs.")] = 25,
) -> None:
    """Write a page of the last runs of a DAG: a grid of tasks by run, how long each took, metrics.

    \b
      gluepy report train --html train.html
    """
    from gluepy.cli.history import report as report_command

    raise typer.Exit(report_command(_invocation(ctx), label, html, limit))


@app.command(short_help="Show how two runs differ.")
def diff(
    ctx: typer.Context,
    first: RunName,
    second: RunName,
    as_json: AsJson = False,
) -> None:
    """Show how two runs differ: code version, options, context, how tasks ended, how long they took, metrics.

    \b
      gluepy diff 9f2c latest
    """
    from gluepy.cli.history import diff as diff_command

    raise typer.Exit(diff_command(_invocation(ctx), first, second, as_json))


@app.command(short_help="Show runs side by side: parameters that differ, metrics.")
def compare(
    ctx: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="The runs, as for `gluepy show`.", autocompletion=_complete_run, show_default=False
        ),
    ],
    metric: Annotated[
        str | None, typer.Option(metavar="TASK.NAME", help="Only this metric, and which run has the best value.")
    ] = None,
    highest: Annotated[bool, typer.Option("--max", help="The highest value is the best.")] = False,
    lowest: Annotated[bool, typer.Option("--min", help="The lowest value is the best.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show runs side by side: the parameters that differ, how long they took, metrics, and which are the best.

    What is better, a task says (goals = {'auc': 'higher'}), or --metric with --max or --min.

    \b
      gluepy compare 9f2c 01ab latest
      gluepy compare 9f2c latest --metric fit.rmse --min
    """
    from gluepy.cli.comparing import compare as compare_command

    done = compare_command(_invocation(ctx), runs, metric=metric, highest=highest, lowest=lowest, as_json=as_json)
    raise typer.Exit(done)


@app.command(short_help="Fail if the metrics of a run are worse than those of another.")
def check(
    ctx: typer.Context,
    run: RunName,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="RUN",
            help="What it is compared with.",
            autocompletion=_complete_run,
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Compare the metrics of a run that have a goal with those of another run: for CI.

    Exit codes: 0 none is worse; 1 one is worse beyond its tolerance, or missing; 2 there is nothing to compare. Tasks
    declare what is better: goals = {'auc': Goal('higher', tolerance=0.01), 'rmse': 'lower'}.

    \b
      gluepy check latest --baseline 9f2c
    """
    from gluepy.cli.comparing import check as check_command

    raise typer.Exit(check_command(_invocation(ctx), run, baseline, as_json))


@app.command()
def events(
    ctx: typer.Context,
    run: RunName = "latest",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """Print the events of a run as JSON lines.

    \b
      gluepy events latest | jq 'select(.event == "task.failed")'
    """
    from gluepy.cli.inspecting import show_events

    raise typer.Exit(show_events(_invocation(ctx), run, follow))


@app.command(short_help="Send the record of a run to a sink.")
def export(
    ctx: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="The run: its id, the end of its id, 'latest', or 'latest:LABEL'; '-': events on stdin.",
            autocompletion=_complete_run,
            show_default=False,
        ),
    ] = None,
    sink: Annotated[
        str | None,
        typer.Option(
            "--sink",
            metavar="NAME",
            help="The sink: a dotted path, or the short name of an installed one.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        bool, typer.Option("--output", help="Send what the tasks printed and logged too, from their log files.")
    ] = False,
) -> None:
    """Send every event of a run to a sink, as if it had watched the run.

    What a sink makes of a run has the same ids each time, so a run can be sent again without harm. Events that
    are piped in, of one run or of many, also from another machine, need no RUN; the sink may then be the one argument.

    \b
      gluepy export latest --sink otel
      ssh there gluepy events latest | gluepy export otel

    Exit codes: 0 all was taken; 2 there is no such run or sink; 3 the sink failed.
    """
    from gluepy.cli.exporting import export as export_command

    raise typer.Exit(export_command(_invocation(ctx), run, sink, output))


@app.command(short_help="Print what the tasks of a run printed and logged.")
def logs(
    ctx: typer.Context,
    run: RunName = "latest",
    task: Annotated[
        str | None,
        typer.Argument(metavar="[TASK]", help="Only this task, by id, or all with this label.", show_default=False),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """Print what the tasks of a run printed and logged, attempt by attempt.

    \b
      gluepy logs latest fit
      gluepy logs latest 'fit[region=eu]'
      gluepy logs --follow
    """
    if follow:
        from gluepy.cli.following import follow_logs

        raise typer.Exit(follow_logs(_invocation(ctx), run, task))
    from gluepy.cli.inspecting import show_logs

    raise typer.Exit(show_logs(_invocation(ctx), run, task))


@app.command(short_help="Watch a run of another process until it ends.")
def watch(ctx: typer.Context, run: RunName = "latest", progress: Progress = "auto", quiet: Quiet = False) -> None:
    """Watch a run of another process until it ends. Ctrl-C stops watching; the run goes on.

    Exit codes: 0 when the run finished, 1 when it failed or was cancelled, 3 when its driver was lost.
    """
    from gluepy.cli.following import watch as watch_command

    raise typer.Exit(watch_command(_invocation(ctx), run, progress, quiet))


@app.command(short_help="Cancel a run of another process.")
def cancel(
    ctx: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="The run: its id, the end of its id, 'latest', or 'latest:LABEL'.",
            autocompletion=_complete_run,
        ),
    ],
) -> None:
    """Cancel a run of another process, and wait until nothing of it is left running."""
    from gluepy.cli.following import cancel as cancel_command

    raise typer.Exit(cancel_command(_invocation(ctx), run))


@app.command(short_help="Run attempts of other machines' runs, for the executor 'celery'.")
def worker(
    ctx: typer.Context,
    queue: Annotated[
        str | None, typer.Option("--queue", "-q", metavar="Q", help="Take attempts from this queue. [CELERY.queue]")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", "-c", metavar="N", min=1, help="Run N attempts at a time. [CONCURRENCY]"),
    ] = None,
) -> None:
    """Run the attempts of runs whose executor is 'celery', with this project's code, settings and secrets.

    It takes them from a queue of CELERY.broker_url. SIGTERM and Ctrl-C let it finish what runs, and take nothing more;
    another one kills what runs, and its driver tries it elsewhere if its task may be retried. SIGHUP starts it anew,
    with the code and settings as they are then.

    \b
      gluepy worker --concurrency 4
      gluepy worker --queue gpu

    Exit codes: 0 it was stopped; 2 a mistake in the settings; 3 the broker cannot be reached.
    """
    from gluepy.cli.working import work

    raise typer.Exit(work(_invocation(ctx), queue, concurrency))


@app.command(short_help="The datasets that a run has read and written.")
def data(ctx: typer.Context, run: RunName = "latest", as_json: AsJson = False) -> None:
    """List what the tasks of a run have read and written by name (self.read, self.write)."""
    from gluepy.cli.datasets import show_datasets

    raise typer.Exit(show_datasets(_invocation(ctx), run, as_json))


@app.command(short_help="Which run made a dataset, and of what.")
def lineage(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The dataset, as the task calls it, or its URL.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Tell which task of which run wrote a dataset last, of what, with which code and parameters."""
    from gluepy.cli.datasets import show_lineage

    raise typer.Exit(show_lineage(_invocation(ctx), name, as_json))


@app.command(short_help="Run one task of a run, for an orchestrator that schedules the graph.")
def step(
    ctx: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The whole id of the run.", show_default=False)],
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task, by its id or its slug.", show_default=False)],
    dag: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="The run's DAG: the first step of a run that nobody has begun needs it."),
    ] = None,
    param: Param = None,
    params: Params = None,
    executor: Annotated[str, typer.Option(metavar="NAME", help="What the events call the orchestrator.")] = "step",
    skip_code: Annotated[
        int, typer.Option(metavar="N", min=0, max=255, help="The exit code for a task that was skipped.")
    ] = 0,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", help="Stop when the process is gone that has started this one.")
    ] = False,
    list_added: Annotated[
        bool,
        typer.Option(
            "--list-added",
            help="Print what an each has added, as the last line: a JSON list of rows, ids by label.",
        ),
    ] = False,
) -> None:
    """Make the next attempt of a task, in a process of its own, and write what became of it beside the run's files.

    The first step of a run writes run.json there, with the graph and the parameters; later ones read it. It may be
    called again: a task that has finished is not run again, one that runs is waited for, one that failed is tried
    again. SIGTERM stops the attempt with all its descendants.

    \b
      gluepy step 2026-01-01 load --dag train -P date=2026-01-01
      gluepy step 2026-01-01 'fit[region=eu]'

    Exit codes: 0 the task finished, or was skipped; 1 it failed, or was blocked; 2 usage; 3 storage; 143 SIGTERM.
    """
    from gluepy.cli.stepping import step as step_command

    raise typer.Exit(
        step_command(
            _invocation(ctx),
            run,
            task,
            dag=dag,
            param=param or (),
            params=params,
            executor=executor,
            skip_code=skip_code,
            with_parent=with_parent,
            list_added=list_added,
        )
    )


@app.command(short_help="Record runs that an orchestrator has run without us.")
def collect(
    ctx: typer.Context,
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="The whole id of the run.", show_default=False)
    ] = None,
) -> None:
    """Make the record of a run of what its steps have left in STORAGE_ROOT, so that runs, show and diff know it.

    Without RUN, of all runs there that this machine has no record of. One that goes on is recorded as far as it has
    come, and made again next time.
    """
    from gluepy.cli.stepping import collect as collect_command

    raise typer.Exit(collect_command(_invocation(ctx), run))


@app.command(short_help="Write a DAG file for Airflow.")
def airflow(
    ctx: typer.Context,
    action: Annotated[str, typer.Argument(metavar="export", help="What to do: export.", show_default=False)],
    label: Label,
    schedule: Annotated[
        str | None, typer.Option(metavar="CRON", help="When Airflow starts it by itself: '@daily', '0 6 * * *'.")
    ] = None,
    operator: Annotated[
        str,
        typer.Option(metavar="KIND", help="How a task runs: bash, kubernetes:IMAGE, or module:factory of your own."),
    ] = "bash",
    dag_id: Annotated[
        str | None,
        typer.Option("--dag-id", metavar="ID", help="Its name in Airflow. [the label]", show_default=False),
    ] = None,
    python: Annotated[
        str | None, typer.Option(metavar="PATH", help="The interpreter where tasks run. [this one]", show_default=False)
    ] = None,
) -> None:
    """Write a DAG file on standard output, for the dags folder of an Airflow that need not have gluepy or the project.

    \b
      gluepy airflow export train --schedule @daily > ~/airflow/dags/train.py
      gluepy run train --executor airflow
    """
    from gluepy.cli.orchestrating import export_airflow

    raise typer.Exit(
        export_airflow(
            _invocation(ctx), action, label, schedule=schedule, operator=operator, dag_id=dag_id, python=python
        )
    )


@app.command(short_help="Delete the records of old runs.")
def prune(
    ctx: typer.Context,
    keep: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Delete runs beyond the newest N.", show_default=False)
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Delete runs that started longer ago: 30d, 12h, 2w.", show_default=False),
    ] = None,
    dag: Annotated[str | None, typer.Option(metavar="LABEL", help="Only runs of this DAG.")] = None,
    files: Annotated[
        bool, typer.Option("--files", help="Delete the files of their tasks too: STORAGE_ROOT/runs/ID.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
) -> None:
    """Delete the records of old runs, without asking; never one that is running.

    With both --keep and --older-than, runs go that are beyond the newest N and older than that.

    \b
      gluepy prune --keep 100 --older-than 30d --dry-run
    """
    from gluepy.cli.history import prune as prune_command

    raise typer.Exit(
        prune_command(_invocation(ctx), keep=keep, older_than=older_than, dag=dag, files=files, dry_run=dry_run)
    )


@app.command(short_help="Make a project that runs.")
def startproject(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The project's name: letters, digits and _.")],
) -> None:
    """Make a project in the new folder NAME, with a DAG that runs at once.

    \b
      gluepy startproject shop
      cd shop
      ./run.py dag sample
    """
    from gluepy.cli.starting import make_project

    raise typer.Exit(make_project(_invocation(ctx), name))


@app.command(short_help="Make a module in the project.")
def startmodule(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The module's name: letters, digits and _.")],
) -> None:
    """Make a module with a task and a DAG in the project, and add it to INSTALLED_MODULES.

    \b
      gluepy startmodule prices
      gluepy run prices
    """
    from gluepy.cli.starting import make_module

    raise typer.Exit(make_module(_invocation(ctx), name))


@app.command(short_help="Write a guide for coding agents: how to run experiments.")
def skill(
    ctx: typer.Context,
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="Where to write it; stdout by default.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a guide for coding agents: what is frozen in this project, how to run, compare, keep or revert.

    \b
      gluepy skill .claude/skills/gluepy/SKILL.md
      gluepy skill AGENTS.md
    """
    from gluepy.cli.skill import write_skill

    raise typer.Exit(write_skill(_invocation(ctx), file, force=force))


def _invocation(ctx: typer.Context) -> Invocation:
    invocation = ctx.find_root().obj
    if isinstance(invocation, Invocation):
        return invocation
    given = ctx.find_root().params  # while completing, the callback is not called
    return Invocation(given.get("project"), given.get("settings"), program_words(sys.argv[0]))
