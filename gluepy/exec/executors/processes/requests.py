"""How a call is put to a worker: what that knows already is not sent again."""

from __future__ import annotations

import marshal
import sys
from collections import OrderedDict
from pathlib import Path

from gluepy.exec.executors.processes.results import WorkerCall
from gluepy.exec.executors.worker import CALL, FRAME, REMEMBERED


class Requests:
    """Those to one worker: they must be sent in the order in which they were made."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()  # of the shared bytes that it has, the latest last
        self._latest = ""
        self._path: list[str] | None = None
        self._script_known = False

    def request(self, call: WorkerCall) -> bytes:
        """The frame that asks for `call`."""
        key, shared = call.shared[0], None
        if key != self._latest or not self._keys:
            shared = self._unknown(*call.shared)
            self._latest = key
        path = None
        if self._path != sys.path:
            self._path = path = [str(folder) for folder in sys.path]
        script = None
        if call.main and not self._script_known:
            self._script_known, script = True, _main_script()
        body = marshal.dumps((call.entry, key, shared, call.payload, path, sys.argv if path else [], script))
        return FRAME.pack(CALL, len(body)) + body

    def _unknown(self, key: str, shared: bytes) -> bytes | None:
        """`shared`, if the worker does not have it."""
        known = key in self._keys
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)
        return None if known else shared


def _main_script() -> dict[str, str] | None:
    """How a worker imports this process's main script, in `multiprocessing.spawn.prepare`'s terms.

    Not `get_preparation_data`: that settles the start method of this process behind its owner's back. None for a
    notebook, standard input and `-c`, which have no script.
    """
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return {"init_main_from_name": name}
    path = getattr(main, "__file__", None)
    if path is not None and Path(path).is_file():
        return {"init_main_from_path": str(Path(path).absolute())}
    return None
