"""Mistakes in what is asked: one clear line with the nearest known name, exit code 2, no traceback."""

from __future__ import annotations

import sys

import pytest
from console_calls import Console


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("run", "trian"), "no DAG labelled 'trian'; did you mean 'train'?"),
        (("run", "train", "--concurency", "3"), "there is no option '--concurency'; did you mean '--concurrency'?"),
        (("run", "train", "--zzz"), "there is no option '--zzz'; see `gluepy run --help`"),
        (("run", "train", "-C", "x"), "there is no option '-C'; it goes before the command"),
        (("rum", "train"), "there is no command 'rum'; did you mean 'run'?"),
        (("zzz",), "there is no command 'zzz'; `gluepy --help` lists them"),
        (("run",), "missing argument 'LABEL'; see `gluepy run --help`"),
        (("run", "train", "more"), "got unexpected extra argument"),
        (("run", "train", "--task"), "'--task' requires an argument"),
        (("run", "train", "-c", "many"), "invalid value for '--concurrency' / '-c'"),
        (("run", "train", "-c", "0"), "invalid value for '--concurrency' / '-c'"),
        (("run", "train", "--timeout", "0"), "--timeout: 0 must be a positive number; give seconds"),
        (
            ("run", "train", "--pool", "proces"),
            "--pool: 'proces' is not one of thread, process; did you mean 'process'",
        ),
        (("run", "train", "--progress", "liv"), "--progress: 'liv' is not one of auto, live, plain, none; did you"),
        (("run", "train", "--task", "laod"), "DAG 'train' has no task 'laod'; did you mean 'load'?"),
        (("run", "train", "--from-task", "fit[region=ue]"), "did you mean 'fit[region=eu]'?"),
        (
            ("run", "train", "--from-task", "report", "--to-task", "load"),
            "--from-task and --to-task: nothing lies between them",
        ),
        (("run", "train", "-P", "year"), "--param: 'year' is not name=value; as in --param date=2026-01-01"),
        (("run", "train", "-P", "=1"), "--param: '=1' is not name=value"),
        (
            ("run", "train", "-P", "flag=False"),
            """would be false in YAML; write flag=false, or 'flag="False"' if it is text""",
        ),
        (("run", "train", "-P", "sha=12345e7"), "12345e7 would be the number 123450000000.0; write sha=123450000000.0"),
        (("resume", "-P", "n=01234"), """--param n: 01234 would be the number 1234; write n=1234, or 'n="01234"' if"""),
        (("run", "train", "--params", "nowhere.yaml"), "--params: cannot read 'nowhere.yaml': No such file"),
        (("run", "train", "--params", "list.yaml"), "--params list.yaml: it holds a list where a mapping"),
        (("run", "train", "--params", "bad.yaml"), "bad.yaml, line 2, column 1: "),
        (("run", "train", "-k", "--fail-fast"), "--keep-going and --fail-fast: they are mutually exclusive"),
        (("run", "train", "--json", "--events", "-"), "--json and --events -: both want stdout"),
        (("run", "train", "--dry-run", "--events", "-"), "--events: with --dry-run there are none"),
        (("run", "train", "--events", "no/where"), "--events: cannot write 'no/where': No such file or directory"),
        (("run", "train", "--run-id", "../up"), "--run-id: '../up' cannot name a folder"),
        (("run", "train", "--run-id", "x" * 101), "at most 100 of them, the first a letter or a digit"),
        (("run", "train", "--run-id", "durations"), "--run-id: 'durations' is the name of a file beside the runs"),
        (("run", "train", "--run-id", "index.sqlite-wal"), "is the name of a file beside the runs; give another"),
        (("run", "train", "--run-id", "latest"), "--run-id: 'latest' means the newest run"),
        (("run", "train", "--executor", "flows.Nope"), "module 'flows' has no 'Nope'; the option executor names it"),
        (("run", "train", "--executor", "LocalExecuter"), "it is neither a dotted path"),
        (("run", "nowhere.py:TrainDAG"), "there is no such file"),
        (("run", "flows/dags.py:Train"), "has no DAG 'Train'; did you mean 'TrainDAG'?"),
        (("graph", "trian"), "no DAG labelled 'trian'; did you mean 'train'?"),
        (
            ("graph", "train", "--format", "mermiad"),
            "--format: 'mermiad' is not one of text, mermaid, dot, svg; did you",
        ),
        (("run", "train", "--run-id", ""), "--run-id: '' cannot name a folder"),
        (("run", "flows/base.py"), "flows/base.py has no tasks; give it some: tasks = (First, Second)"),
        (("run", "folder.py"), "folder.py': it is a folder; name a file in it"),
        (("run", "nulls.py"), "SyntaxError: source code string cannot contain null bytes"),
        (("show", "nope"), "no run 'nope': there are no runs in "),
        (("events", ""), "no run '': there are no runs in "),
        (("--project", "nowhere", "list"), "--project: there is no folder 'nowhere'"),
        (("startproject", "my-shop"), "cannot be the name of a Python module"),
        (("startmodule", "flows"), "flows is there already"),
    ],
)
def test_mistake_is_one_line(words: tuple[str, ...], expected: str, shop: Console) -> None:
    shop.write("list.yaml", "- 1\n")
    shop.write("bad.yaml", "a: [1\n")
    shop.write("flows/base.py", "from gluepy import DAG\nclass BaseDAG(DAG): pass\n")
    shop.write("folder.py/x", "")
    shop.write("nulls.py", "\0")
    done = shop(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert shop.runs == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"GLUEPY_CONCURENCY": "2"}, "GLUEPY_CONCURENCY (environment): there is no such setting; did you mean"),
        ({"GLUEPY_CONCURRENCY": "two"}, "CONCURRENCY (environment GLUEPY_CONCURRENCY): "),
        ({"GLUEPY_INSTALLED_MODULES": '["flow"]'}, "cannot import 'flow': there is no module 'flow'; did you mean"),
        ({"GLUEPY_SETTINGS_MODULE": "settngs"}, "cannot import 'settngs'"),
    ],
)
def test_wrong_setting_is_one_line(env: dict[str, str], expected: str, shop: Console) -> None:
    for words in (("list",), ("run", "train")):
        done = shop(*words, cwd=None, **env)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert expected in line


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("foo://bucket", "(environment GLUEPY_STORAGE_ROOT): there is no storage 'foo'; give a folder, or a URL that"),
        ("s3://bucket", "s3:// needs s3fs, the extra 's3' (it is not there); pip install s3fs"),
    ],
)
def test_storage_that_cannot_be_opened_is_told_before_anything_runs(storage: str, expected: str, shop: Console) -> None:
    shop.write("s3fs.py", "raise ImportError('it is not there')\n")
    for words in (("run", "train"), ("run", "train", "--dry-run")):
        done = shop(*words, GLUEPY_STORAGE_ROOT=storage)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: STORAGE_ROOT (")
        assert expected in line
        assert shop.runs == []


@pytest.mark.slow
def test_label_without_a_project_says_where_one_was_looked_for(gluepy: Console) -> None:
    for words in (("run", "train"), ("graph", "train"), ("list",), ("startmodule", "prices"), ("-C", ".", "list")):
        done = gluepy(*words)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert f"there is no project in {gluepy.folder} or above it" in line
        assert "gluepy startproject NAME" in line


def test_module_that_does_not_import_shows_the_users_frames(shop: Console) -> None:
    shop.write("flows/tasks.py", "def prices():\n    raise RuntimeError('no prices')\n\nprices()\n")
    for words in (("run", "train"), ("list",), ("graph", "train")):
        done = shop(*words)
        assert (done.returncode, done.stdout) == (2, "")
        lines = done.stderr.splitlines()
        assert lines[0] == "error: cannot import 'flows.tasks': RuntimeError: no prices"
        assert [line.strip() for line in lines if line.startswith("  File")] == [
            f'File "{shop.folder}/flows/tasks.py", line 4, in <module>',
            f'File "{shop.folder}/flows/tasks.py", line 2, in prices',
        ]
        assert lines[-1] == "RuntimeError: no prices"


@pytest.mark.slow
def test_near_miss_of_a_setting_is_one_warning_without_source(shop: Console) -> None:
    shop.write("settings.py", "INSTALLED_MODULES = ['flows']\nCONCURENCY = 3\n")
    shop.write(
        "flows/dags.py",
        """
        from gluepy import DAG, Task
        class A(Task):
            def run(self):
                from gluepy.conf import settings
                print(settings.CONCURENCY)
        class B(A):
            pool = "process"
        class ReadDAG(DAG):
            label = "read"
            tasks = (A, B)
        """,
    )
    done = shop("run", "read")
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "CONCURENCY" in line] == [
        "warning: settings.py defines CONCURENCY, which is not a setting of gluepy; did you mean CONCURRENCY?"
    ]
    assert "settings.py defines" not in shop("logs", "latest").stdout
    assert shop("run", "read", "-q").stderr.count("warning") == 0


def test_folder_that_is_gone_is_named(shop: Console) -> None:
    command = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m gluepy list"
    done = shop("-c", command, program=("bash",))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the current folder: it does not exist any more; go to")


def test_syntax_error_in_settings_is_no_traceback_of_ours(shop: Console) -> None:
    shop.write("settings.py", "INSTALLED_MODULES = [\n")
    done = shop("run", "train")
    assert done.returncode == 2
    assert "error: cannot import 'settings': SyntaxError: " in done.stderr
    assert "gluepy/cli" not in done.stderr


def test_context_that_is_not_a_mapping(shop: Console) -> None:
    shop.write("context.yaml", "- 1\n- 2\n")
    done = shop("run", "train")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: context.yaml: it holds a list where a mapping")
    assert shop.runs == []


def test_parameter_that_no_mapping_leads_to(shop: Console) -> None:
    shop.write("context.yaml", "model: tree\n")
    done = shop("run", "train", "-P", "model.depth=3")
    assert done.returncode == 2
    assert "parameter 'model.depth': 'model' is not a mapping" in done.stderr


def test_authoring_mistake_names_the_place_and_the_mend(shop: Console) -> None:
    shop.write(
        "pipe.py",
        """
        from gluepy import DAG, Task
        class A(Task):
            def run(self, rows): pass
        class PipeDAG(DAG): tasks = (A,)
        """,
    )
    for words in (("run", "pipe.py"), ("run", "pipe.py", "--dry-run"), ("graph", "pipe.py")):
        done = shop(*words)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "DAG PipeDAG (pipe), task A (pipe): run takes arguments (rows); " in line


@pytest.mark.parametrize("label", ["sales:daily", "daily.py", "-daily"])
def test_label_that_cannot_be_told_from_something_else_is_refused(label: str, shop: Console) -> None:
    shop.write("flows/dags.py", f"from gluepy import DAG\nclass Daily(DAG):\n    label = {label!r}\n    tasks = ()\n")
    for words in (("list",), ("run", "sales:daily")):
        done = shop(*words)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert f"error: DAG Daily (flows.dags): label is {label!r}; remove ':'" in line


def test_run_id_is_used_once(shop: Console) -> None:
    assert shop("run", "train", "--run-id", "first", "-q").returncode == 0
    done = shop("run", "train", "--run-id", "first")
    assert done.returncode == 2
    assert "--run-id: a run 'first' is recorded already" in done.stderr


def test_bug_of_ours_is_told_apart_from_a_failed_run(shop: Console) -> None:
    shop.write(
        "sitecustomize.py",
        """
        import sys
        sys.modules["gluepy.cli.inspecting"] = None
        """,
    )
    done = shop("list", PYTHONPATH=str(shop.folder))
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "this is a mistake in gluepy itself" in done.stderr
