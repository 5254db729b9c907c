"""Logs of runs by the command: modules of the project log as they please, from when they are imported."""

from __future__ import annotations

from collections.abc import Callable

from console_calls import Console, Terminal

FLOW = """
import logging, sys, threading
import structlog
from loguru import logger
from gluepy import DAG, Task, current_task

logging.basicConfig(format="MINE %(levelname)s %(name)s: %(message)s", level=logging.DEBUG)
logger.remove()
logger.add(sys.stderr, format="LOGURU {message}", colorize=False)
own = logging.getLogger("own")
own.addHandler(logging.StreamHandler())
own.propagate = False

def mask(_logger, _method, event):
    return {**event, "card": "masked by me"} if "card" in event else event

structlog.configure(
    processors=[mask, structlog.processors.KeyValueRenderer()],
    logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    cache_logger_on_first_use=True,
)
log = structlog.get_logger()
log.info("imported")

def tell(n):
    logging.getLogger("app").debug("debug %s", n)
    own.warning("own %s", n)
    logger.info("loguru {}", n)
    log.info("structlog", card=n)
    thread = threading.Thread(target=lambda: (print("thread", n), current_task().metric("seen", n)))
    thread.start()
    thread.join()

class InThread(Task):
    def run(self):
        tell(1)
        self.log.info("self.log", card=1, secret=self.context.token)

class InProcess(InThread):
    pool = "process"

class OnLoop(Task):
    async def run(self):
        InThread.run(self)

class TellDAG(DAG):
    label = "tell"
    tasks = (InThread, InProcess, OnLoop)
"""

TOLD = [
    "LOGURU loguru 1",
    "MINE DEBUG app: debug 1",
    "card='masked by me' event='structlog'",
    "own 1",
    "thread 1",
]


def test_what_modules_have_configured_when_they_were_imported_counts_in_every_pool(shop: Console) -> None:
    shop.write("tell.py", FLOW)
    done = shop("run", "tell.py", "--run-id", "one", "-P", "token=hunter2-and-more", "--progress", "none")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "event='imported'\n"
    for task in ("inthread", "inprocess", "onloop"):
        text = (shop.folder / ".gluepy" / "runs" / "one" / "logs" / f"{task}.1.log").read_text()
        lines = [line for line in text.splitlines() if line != "event='imported'"]  # a worker process imports it too
        assert sorted(line for line in lines if "self.log" not in line) == sorted(TOLD)
        (line,) = (line for line in lines if "self.log" in line)
        assert "card='masked by me'" in line
        assert "secret='***'" in line
        assert f"task='{task}'" in line
    assert "hunter2" not in shop("events", "one").stdout


def test_progress_bar_is_drawn_in_the_live_display(shop: Console, terminal: Callable[..., Terminal]) -> None:
    shop.write(
        "bar.py",
        """
        import sys, time
        from gluepy import DAG, Task
        class Bar(Task):
            def run(self):
                for number in range(100_000):
                    sys.stderr.write(f"\\r{number} drawn")
                    if (self.storage / "seen").exists():
                        break
                    time.sleep(0.01)
                sys.stderr.write("\\rall drawn\\n")
        class BarDAG(DAG): tasks = (Bar,)
        """,
    )
    (shop.folder / "data").mkdir()
    screen = terminal("run", "bar.py", "--run-id", "one")
    screen.wait_for(" drawn")
    (shop.folder / "data" / "seen").touch()
    assert screen.wait() == 0
    assert "\\x0d" not in screen.text
    assert (shop.folder / ".gluepy" / "runs" / "one" / "logs" / "bar.1.log").read_text() == "all drawn\n"
