"""New projects and modules that run at once, and a project's own commands."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from console_calls import Console


@pytest.mark.slow
def test_new_project_runs_at_once_and_so_do_its_tests(gluepy: Console) -> None:
    made = gluepy("startproject", "shop")
    assert made.returncode == 0
    command = made.stdout.splitlines()[-1].strip()
    assert command == "cd shop && ./run.py dag sample"
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = gluepy("-c", command, program=("bash",), PATH=path)
    assert done.returncode == 0, done.stderr
    assert "finished in" in done.stdout
    shop = gluepy.folder / "shop"
    (report,) = shop.glob("data/runs/*/report.txt")
    assert "Largest orders" in report.read_text()
    tested = gluepy("-q", "-p", "no:cacheprovider", program=(sys.executable, "-m", "pytest"), cwd=shop)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "2 passed" in tested.stdout
    anywhere = gluepy("dag", "sample", "-q", program=(sys.executable, str(shop / "run.py")), cwd=Path("/"))
    assert anywhere.returncode == 0, anywhere.stderr
    assert len(list(shop.glob(".gluepy/runs/*/events.jsonl"))) == 2


@pytest.mark.slow
def test_new_module_is_installed_and_runs(gluepy: Console) -> None:
    gluepy("startproject", "shop")
    shop = gluepy.folder / "shop"
    made = gluepy("startmodule", "prices", cwd=shop)
    assert made.returncode == 0
    assert made.stdout.splitlines()[:2] == [
        f"made {shop / 'prices'}",
        "added it to INSTALLED_MODULES; run it with:",
    ]
    command = shlex.split(made.stdout.splitlines()[2])
    assert command[-2:] == ["run", "prices"]
    done = gluepy("run", "prices", cwd=shop)
    assert done.returncode == 0, done.stderr
    assert gluepy("list", cwd=shop).stdout.split()[0] == "prices"


def test_module_that_cannot_be_installed_says_what_to_do(gluepy: Console) -> None:
    gluepy.write("settings.py", "INSTALLED_MODULES = [] + []\n")
    made = gluepy("startmodule", "prices")
    assert made.returncode == 0
    assert "add 'prices' to INSTALLED_MODULES in the project's settings" in made.stdout


def test_project_is_made_where_it_is_wanted(gluepy: Console) -> None:
    (gluepy.folder / "a b").mkdir()
    made = gluepy("-C", "a b", "startproject", "shop")
    assert made.returncode == 0
    assert made.stdout.splitlines()[-1].strip() == "cd 'a b/shop' && ./run.py dag sample"
    assert (gluepy.folder / "a b/shop/settings.py").is_file()


ONE = """
    import typer
    app = typer.Typer()

    @app.command()
    def greet(name: str = "you") -> None:
        '''Greet somebody.'''
        from gluepy.conf import settings
        print("hello", name, settings.INSTALLED_MODULES)
"""


@pytest.mark.slow
def test_one_command_of_a_project_is_a_command(shop: Console, tmp_path: Path) -> None:
    shop.write("flows/commands.py", ONE)
    assert shop("--help").stdout.splitlines()[-1].split() == ["greet", "Greet", "somebody."]
    assert shop("greet", "--name", "Ada").stdout == "hello Ada ['flows']\n"
    away = tmp_path / "away"
    away.mkdir()
    (away / "settings.py").write_text("INSTALLED_MODULES = ['else']\n")
    assert shop("-C", "..", "greet", cwd=away).stdout == "hello you ['flows']\n"
    done = shop("greed")
    assert (done.returncode, done.stderr) == (2, "error: there is no command 'greed'; did you mean 'greet'?\n")
    assert shop("greet", "--nam").returncode == 2


def test_many_commands_of_a_project_are_a_group_by_the_modules_name(shop: Console) -> None:
    shop.write(
        "flows/commands.py", ONE + "\n    @app.command()\n    def other() -> None:\n        raise typer.Exit(5)\n"
    )
    assert shop("flows", "greet").stdout.startswith("hello you")
    assert shop("flows", "other").returncode == 5
    shop.write("flows/commands.py", ONE.replace("typer.Typer()", "typer.Typer(name='tools')"))
    assert shop("tools", "greet").stdout.startswith("hello you")


def test_command_that_fails_shows_its_own_frames(shop: Console) -> None:
    shop.write("flows/commands.py", ONE.replace("print(", "raise KeyError("))
    done = shop("greet")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("KeyError: ")
    assert [line for line in done.stderr.splitlines() if line.startswith("  File")] == [
        f'  File "{shop.folder}/flows/commands.py", line 9, in greet'
    ]


def test_command_that_runs_a_dag_has_gluepys_exit_codes(shop: Console) -> None:
    shop.write("flows/commands.py", ONE.replace("print(", "import gluepy; gluepy.run_dag_sync(name); print("))
    assert shop("greet", "--name", "train").returncode == 0
    done = shop("greet", "--name", "fail")
    assert done.returncode == 1
    assert done.stderr.startswith("broken failed in attempt 1: ValueError: bad [red]price[/red]\n  Traceback")
    assert done.stderr.splitlines()[-1].startswith("error: 1 task of DAG 'fail' failed (run ")
    done = shop("greet", "--name", "trian")
    assert (done.returncode, done.stderr) == (2, "error: no DAG labelled 'trian'; did you mean 'train'?\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ONE.replace("def greet", "def show"), "flows.commands: the command 'show' is gluepy's own already"),
        ("x = 1\n", "flows.commands: it defines no typer app; write `app = typer.Typer()`"),
        ("import typer\na = typer.Typer()\nb = typer.Typer()\n", "flows.commands: it defines 2 typer apps"),
        ("import nowhere\n", "cannot import 'flows.commands': ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_commands_that_cannot_be_had_spoil_nothing_else(text: str, expected: str, shop: Console) -> None:
    shop.write("flows/commands.py", text)
    assert shop("list").returncode == 0
    done = shop("--help")
    assert done.returncode == 0
    assert f"The project's own commands cannot be shown: {expected}" in done.stdout
    done = shop("greet")
    assert done.returncode == 2
    assert f"error: {expected}" in done.stderr


def test_project_command_runs_dags_of_the_project_that_was_named(shop: Console, tmp_path: Path) -> None:
    shop.write(
        "flows/commands.py",
        """
        import gluepy, typer
        app = typer.Typer()

        @app.command()
        def runit() -> None:
            print(gluepy.run_dag_sync("train").status)
        """,
    )
    away = tmp_path / "away"
    away.mkdir()
    done = shop("-C", str(shop.folder), "runit", cwd=away)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["finished"]), done.stderr
    assert len(shop.runs) == 1


def test_system_error_in_a_projects_command_is_its_own(shop: Console) -> None:
    shop.write(
        "flows/commands.py",
        """
        import typer
        app = typer.Typer()

        @app.command()
        def read() -> None:
            open("nowhere.txt")
        """,
    )
    done = shop("read")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert f'{shop.folder}/flows/commands.py", line' in lines[1]
    assert lines[-1] == "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.txt'"


def test_files_named_like_modules_of_the_standard_library_break_nothing(gluepy: Console) -> None:
    for name in ("secrets", "random", "queue", "tempfile", "shutil", "uuid", "ctypes", "platform"):
        gluepy.write(f"{name}.py", "raise RuntimeError('not mine')")
    gluepy.write(
        "pipe.py",
        """
        from gluepy import DAG, Task

        class Here(Task):
            def run(self):
                with self.atomic("rows.txt") as file:
                    file.write_text("1")

        class There(Here):
            pool = "process"

        class PipeDAG(DAG):
            tasks = (Here, There)
        """,
    )
    done = gluepy("run", "pipe.py")  # by python -m, which puts the current folder first on sys.path
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_env_file_of_a_project_serves_the_settings_module_tasks_and_what_they_start(gluepy: Console) -> None:
    gluepy.write(".env", "DB_PASSWORD=hush\nREGION=eu\nGLUEPY_LIMIT_S=5\nHOME=/nowhere\n")
    gluepy.write(
        "settings.py", "import os\nINSTALLED_MODULES = ['flow']\nLOGIN = os.environ['DB_PASSWORD']\nLIMIT_S = 1.5\n"
    )
    gluepy.write(
        "flow.py",
        """
        import os
        import subprocess
        from gluepy import DAG, Task, parallel
        from gluepy.conf import settings
        class Thread(Task):
            def run(self):
                assert settings.LIMIT_S == 5.0
                assert settings.LOGIN == os.environ["DB_PASSWORD"] == "hush"
                assert os.environ["HOME"] != "/nowhere"
                assert "GLUEPY_LIMIT_S" not in os.environ
                assert subprocess.check_output("echo $REGION", shell=True, text=True) == "eu\\n"
        class Process(Thread):
            pool = "process"
        class FlowDAG(DAG):
            label = "flow"
            tasks = parallel(Thread, Process)
        """,
    )
    done = gluepy("run", "flow")
    assert done.returncode == 0, done.stderr
    assert gluepy("run", "flow", REGION="us").returncode == 1  # what is set already stays


def test_settings_module_is_named_on_the_command_line(gluepy: Console) -> None:
    gluepy.write("settings.py", "INSTALLED_MODULES = []\n")
    gluepy.write("conf/staging.py", "INSTALLED_MODULES = ['flow']\nPOOL = 'process'\nSTAGE = 'staging'\n")
    gluepy.write(
        "flow.py",
        """
        from pathlib import Path
        from gluepy import DAG, Task
        from gluepy.conf import settings
        class One(Task):
            def run(self):
                assert settings.STAGE == "staging"
                assert Path("go").exists()
        class FlowDAG(DAG):
            label = "flow"
            tasks = (One,)
        """,
    )
    failed = gluepy("--settings", "conf.staging", "run", "flow", GLUEPY_RUNS_ROOT="my runs")
    (run,) = (gluepy.folder / "my runs").glob("*-*")
    hint = failed.stderr.splitlines()[-1].removeprefix("resume it with: ")
    assert hint.startswith("GLUEPY_RUNS_ROOT='my runs' ")
    assert hint.endswith(f" --settings conf.staging resume {run.name}")
    gluepy.write("go", "")
    assert gluepy("-c", hint, program=("bash",)).returncode == 0
    for module, expected in (
        ("conf.stagging", "did you mean 'conf.staging'"),
        ("conf/staging.py", "write conf.staging"),
    ):
        wrong = gluepy("--settings", module, "list")
        assert wrong.returncode == 2
        assert expected in wrong.stderr


def test_installed_package_brings_commands_which_the_projects_own_go_before(shop: Console) -> None:
    shop.write("theirs-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    shop.write(
        "theirs-1.dist-info/entry_points.txt",
        """
        [gluepy.commands]
        greet = theirs:app
        run = theirs:app
        odd = theirs:odd
        """,
    )
    shop.write(
        "theirs.py",
        """
        import typer
        app, odd = typer.Typer(), 3

        @app.command()
        def anything() -> None:
            print("theirs")
        """,
    )
    path = str(shop.folder)
    assert shop("greet", PYTHONPATH=path).stdout == "theirs\n"
    helped = shop("--help", PYTHONPATH=path).stdout
    assert "greet" in helped
    assert "An installed command cannot be shown: theirs:odd: 3 is not a typer app" in helped
    assert "Run a DAG" in shop("run", "--help", PYTHONPATH=path).stdout
    failed = shop("odd", PYTHONPATH=path)
    assert (failed.returncode, "must name one" in failed.stderr) == (2, True)
    shop.write("flows/commands.py", ONE)
    assert shop("greet", PYTHONPATH=path).stdout.startswith("hello you")
