"""A call finds its process as the first one found it, or another process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from workers import WORKERS, Heard, call

from gluepy.exec.executors.processes import Reply, WorkerCall, WorkerPool

pytestmark = WORKERS
MODULES = (
    "# asyncio decimal locale logging multiprocessing resource socket subprocess threading time tracemalloc warnings\n"
)
IMPORTS = "import " + ", ".join(MODULES.strip("# \n").split()) + ", builtins, faulthandler, gc, json, os, signal, sys\n"

# What a process is like, all of it JSON.
LOOK = """
def text(value):
    return repr(value)

root = logging.getLogger()
result = json.dumps({
    "environment": sorted(os.environ.items()),
    "environment of children": sorted(subprocess.run("/usr/bin/env", stdout=subprocess.PIPE).stdout.decode().split()),
    "folder": os.getcwd(),
    "umask": [os.umask(0o22), os.umask(0o22)],
    "handlers": [text(signal.getsignal(number)) for number in range(1, 32)],
    "mask": text(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "timers": [signal.getitimer(timer) for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)],
    "limits": [resource.getrlimit(kind) for kind in range(16)],
    "priority": os.getpriority(os.PRIO_PROCESS, 0),
    "cpus": sorted(os.sched_getaffinity(0)),
    "path": sys.path,
    "arguments": sys.argv,
    "locale": locale.setlocale(locale.LC_ALL),
    "time": time.tzname,
    "start method": multiprocessing.get_start_method(allow_none=True),
    "decimals": text(decimal.getcontext()),
    "time-out": socket.getdefaulttimeout(),
    "warnings": text(warnings.filters),
    "shows warnings": text([warnings.showwarning, warnings._showwarnmsg_impl]),
    "levels": [root.level, logging.getLogger("known").level, logging.getLogger("new").level, root.manager.disable],
    "handlers of loggers": text([logging.getLogger(name).handlers for name in ("", "known", "new")]),
    "loggers": text([logging.getLogger("known").propagate, logging.getLogger("known").disabled, root.filters]),
    "hooks": text([sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook, sys.stdin]),
    "recursion": sys.getrecursionlimit(),
    "switches": sys.getswitchinterval(),
    "traced": text([sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()]),
    "collector": text([gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.callbacks]),
    "memory traced": tracemalloc.is_tracing(),
    "digits": sys.get_int_max_str_digits(),
    "stack": threading.stack_size(),
    "event loop": text(asyncio.events._event_loop_policy),
    "crashes told": faulthandler.is_enabled(),
    "encodings": [sys.stdout.encoding, sys.stdout.errors, sys.stderr.line_buffering],
    "blocking": [os.get_blocking(1), os.get_blocking(2)],
}).encode()
"""

CHANGES = {
    "environment": "os.environ['TOKEN'] = 'x'; del os.environ['PATH']; os.environ['HOME'] = '/'",
    "environment replaced": "os.environ = {}",
    "time zone": "os.environ['TZ'] = 'Asia/Tokyo'; time.tzset()",
    "folder": "os.chdir('/')",
    "umask": "os.umask(0o777)",
    "handlers": "for number in (1, 2, 10, 14, 15, 17): signal.signal(number, lambda *_: None)",
    "ignored": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "mask": "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})",
    "timers": """
        for timer, number in ((0, 14), (1, 26), (2, 27)):
            signal.signal(number, lambda *_: None)
            signal.setitimer(timer, 1, 1)
        """,
    "limit": "resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))",
    "cpus": "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
    "path": "sys.path.insert(0, '/nowhere')",
    "path replaced": "sys.path = []",
    "arguments": "sys.argv[:] = ['other']",
    "locale": "locale.setlocale(locale.LC_ALL, 'C' if locale.setlocale(locale.LC_ALL) != 'C' else 'C.UTF-8')",
    "start method": "multiprocessing.set_start_method('spawn')",
    "start method settled": "multiprocessing.Lock()",
    "decimals": "decimal.getcontext().prec = 3; decimal.setcontext(decimal.ExtendedContext)",
    "time-out": "socket.setdefaulttimeout(0.001)",
    "warnings": "warnings.simplefilter('error')",
    "warnings caught": "warnings.catch_warnings(record=True).__enter__()",
    "warnings logged": "logging.captureWarnings(True)",
    "logging disabled": "logging.disable(logging.CRITICAL)",
    "root logger": "logging.basicConfig(level=1, force=True)",
    "levels": "logging.getLogger('known').setLevel(10); logging.getLogger('new').setLevel(50)",
    "handlers of loggers": """
        for name in ('known', 'new'):
            logging.getLogger(name).addHandler(logging.StreamHandler())
        """,
    "logging configured": """
        import logging.config
        handler = {'class': 'logging.StreamHandler'}
        logging.config.dictConfig({'version': 1, 'handlers': {'h': handler}, 'root': {'level': 5, 'handlers': ['h']}})
        """,
    "hooks": "sys.excepthook = sys.unraisablehook = sys.displayhook = threading.excepthook = print",
    "input": "import io; sys.stdin = io.StringIO()",
    "recursion": "sys.setrecursionlimit(5000)",
    "switches": "sys.setswitchinterval(1)",
    "traced": "sys.settrace(lambda *_: None); threading.settrace(print); threading.setprofile(print)",
    "profiled": "sys.setprofile(lambda *_: None)",
    "collector": "gc.disable(); gc.set_threshold(1); gc.set_debug(gc.DEBUG_STATS); gc.callbacks.append(print)",
    "memory traced": "tracemalloc.start()",
    "digits": "sys.set_int_max_str_digits(0)",
    "stack": "threading.stack_size(1 << 20)",
    "event loop": "asyncio.run(asyncio.sleep(0))",
    "event loop closed": """
        asyncio.set_event_loop(asyncio.new_event_loop())
        asyncio.get_event_loop_policy().get_event_loop().close()
        """,
    "crashes not told": "faulthandler.disable()",
    "encodings": "sys.stdout.reconfigure(encoding='latin-1', errors='strict')",
    "buffering": "sys.stderr.reconfigure(line_buffering=False)",
    "not blocking": "os.set_blocking(1, False)",
}


async def seen(pool: WorkerPool, after: str = "") -> tuple[dict[str, Any], int]:
    """What the process is like for a call that has done `after`, and its id."""
    source = MODULES + IMPORTS + dedent(after) + LOOK
    reply = await call(pool, source, entry="process_calls:prepared")
    return json.loads(reply.body), reply.pid


async def test_what_a_call_changes_in_its_process_is_put_back() -> None:
    async with WorkerPool() as pool:
        known = "import logging; logging.getLogger('known').setLevel(20)\nimport faulthandler"
        await call(pool, known)
        before, worker = await seen(pool)
        for name, change in CHANGES.items():
            changed, pid = await seen(pool, change)
            assert changed != before, name
            assert pid == worker, name
            assert (
                await call(pool, MODULES + IMPORTS + dedent(change), entry="process_calls:prepared")
            ).pid == worker, name
            now, pid = await seen(pool)
            assert now == before, name
            assert pid == worker, name


FOR_GOOD = {
    "hard limit": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))",
    "group": "import os; os.setpgid(0, os.getppid())",
    "user": "import os; os.setresuid(65534, 65534, 65534)",
    "path with modules": "import sys; sys.path.insert(0, {folder!r}); import only_there",
    "daemon thread": "import threading, time; threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
}


@pytest.mark.parametrize("name", FOR_GOOD)
async def test_a_call_never_finds_what_cannot_be_put_back(name: str, tmp_path: Path) -> None:
    if name == "user" and os.getuid():
        pytest.skip("only root can become somebody else")
    (tmp_path / "only_there.py").touch()
    change = FOR_GOOD[name].format(folder=str(tmp_path))
    look = "import os, resource, sys; result = repr((os.getuid(), resource.getrlimit(7), sys.path)).encode()"
    async with WorkerPool() as pool:
        before, first, after = await call(pool, look), await call(pool, change), await call(pool, look)
    assert before.pid == first.pid != after.pid
    assert before.body == after.body


async def test_a_call_that_comes_to_a_changed_process_is_made_once_by_another() -> None:
    heard = Heard()
    for_good = FOR_GOOD["hard limit"].encode()

    def then(_reply: Reply) -> WorkerCall:
        return WorkerCall("process_calls:code", ("", b""), b"print('once')", heard.on_line, heard.messages.append)

    async with WorkerPool() as pool:
        for _ in range(5):
            first = WorkerCall("process_calls:code", ("", b""), for_good, print, print, then=then)
            await pool.make(first)
    assert heard.stdout == ["once"] * 5


async def test_what_modules_do_when_they_are_imported_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settles.py").write_text(
        dedent("""
        import decimal, logging, multiprocessing, os, signal, sys, threading, time, warnings
        os.environ["SETTLED"] = "yes"
        os.umask(0o077)
        multiprocessing.set_start_method("spawn")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        logging.getLogger("settles").addHandler(logging.NullHandler())
        warnings.filterwarnings("ignore", message="settled")
        decimal.getcontext().prec = 7
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "# settles\n" + IMPORTS + LOOK + "\ndecimal.getcontext().prec = 50\nos.environ['SETTLED'] = 'no'"
    async with WorkerPool() as pool:
        replies = [await call(pool, source, entry="process_calls:prepared") for _ in range(3)]
    assert len({reply.pid for reply in replies}) == 1
    assert len({reply.body for reply in replies}) == 1
    seen = json.loads(replies[0].body)
    assert ["SETTLED", "yes"] in seen["environment"]
    assert (seen["umask"][0], seen["start method"]) == (0o077, "spawn")
    assert "prec=7" in seen["decimals"]


async def test_a_logger_is_set_up_anew_unless_a_module_did_so_that_was_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "library.py").write_text("import logging; logging.getLogger('library.part').setLevel(50)")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = """
        import logging
        logger, part = logging.getLogger("own"), logging.getLogger("library.part")
        result = repr((logger.level, logger.handlers, part.level)).encode()
        import library
        logger.addHandler(logging.FileHandler(FILE))
        logger.setLevel(10)
        logger.info("written once")
        """.replace("FILE", repr(str(tmp_path / "log")))
    async with WorkerPool() as pool:
        first, second = await call(pool, source), await call(pool, source)
        assert second.pid == first.pid
    assert (first.body, second.body) == (b"(0, [], 0)", b"(0, [], 50)")
    assert (tmp_path / "log").read_text() == "written once\n" * 2


async def test_context_variables_are_each_calls_own() -> None:
    source = """
        # contextvars decimal
        import contextvars, decimal, sys
        variable = sys.__dict__.setdefault("variable", contextvars.ContextVar("variable", default="unset"))
        result = f"{variable.get()} {decimal.getcontext().prec}".encode()
        variable.set("set")
        decimal.getcontext().prec = 3
        """
    async with WorkerPool() as pool:
        for _ in range(2):
            assert (await call(pool, dedent(source).strip(), entry="process_calls:prepared")).body == b"unset 28"


@pytest.mark.parametrize("module", ["random", "numpy.random"])
async def test_numbers_are_not_drawn_by_the_seed_of_an_earlier_call(module: str) -> None:
    pytest.importorskip(module)
    draw = f"import {module} as generator\nresult = repr([generator.random() for _ in range(3)]).encode()\n"
    seeded = draw.replace("\n", "\ngenerator.seed(7)\n", 1)
    async with WorkerPool() as pool:
        first, then = await call(pool, seeded), await call(pool, draw)
        again, now = await call(pool, seeded), await call(pool, draw)
    assert first.body == again.body
    assert len({first.body, then.body, now.body}) == 3
    assert first.pid == now.pid


async def test_a_warning_that_is_shown_once_is_shown_to_every_call() -> None:
    async with WorkerPool() as pool:
        for _ in range(2):
            heard = Heard()
            await call(pool, "import warnings\nfor _ in range(2): warnings.warn('mind')", heard)
            assert [line for line in heard.stderr if "mind" in line] == ["<string>:2: UserWarning: mind"]


async def test_a_thread_that_an_installed_library_keeps_costs_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "site-packages" / "progress_bars.py"
    library.parent.mkdir()
    library.write_text(
        "import threading, time\n"
        "def watch(): time.sleep(1000)\n"
        "def start(daemon): threading.Thread(target=watch, daemon=daemon).start()\n"
    )
    monkeypatch.syspath_prepend(str(library.parent))
    async with WorkerPool(leave_s=0.3) as pool:
        pids = [(await call(pool, "import progress_bars; progress_bars.start(True)")).pid for _ in range(2)]
        assert (await call(pool, "import progress_bars; progress_bars.start(False)")).pid == pids[0] == pids[1]
        assert (await call(pool)).pid != pids[0]
