"""Whether an attempt may run on this machine, and what it needs of it: this worker's own settings and secrets."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gluepy.conf import discovered_project
from gluepy.conf.code import code_version, same_code
from gluepy.conf.context import Context
from gluepy.conf.parameters import load_parameters
from gluepy.conf.places import at_place, dotted, placed
from gluepy.conf.schema import Settings
from gluepy.conf.secrets import KnownSecrets
from gluepy.conf.sources import load_settings
from gluepy.core.events import JSON
from gluepy.errors import GluepyError
from gluepy.exec.executors.remote.fence import has_token
from gluepy.exec.executors.remote.messages import Order
from gluepy.exec.port import Attempt, Outcome, RunInfo

HOST = socket.gethostname()
_KNOWN_RUNS = 64


class Refused(GluepyError):
    """The run cannot go on with this worker: `why`, and what to do (`hint`)."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why, hint)
        self.why, self.hint = why, hint


class NotHere(GluepyError):
    """This attempt does not run here: `outcome` says how it ended for that."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Admission:
    """Admits attempts to a worker that is called `worker`. From any thread.

    `own`: the worker is one that the driver has started itself, on its machine: it has the driver's project and code.
    """

    def __init__(self, worker: str, own: bool) -> None:
        self._worker, self._own = worker, own
        self._lock = threading.Lock()
        self._settings: Settings | None = None
        self._runs: dict[str, tuple[RunInfo, RunInfo, str]] = {}  # as it came, as it runs here, what is odd about it

    def knows(self, run: RunInfo) -> bool:
        """Whether an attempt of this run was admitted before: then nothing is read for the next."""
        known = self._runs.get(run.run_id)
        return known is not None and known[0] == run

    def admit(self, order: Order, attempt: Attempt) -> tuple[Attempt, str]:
        """The attempt as it is to run here, and a warning or an empty string. Raises `Refused`, `NotHere`, and
        `UsageError` for settings or a context of the worker's own that cannot be read."""
        with self._lock:
            return self._admit(order, attempt)

    def _admit(self, order: Order, attempt: Attempt) -> tuple[Attempt, str]:
        if not self._own:
            self._check_module(attempt)
        elif order.path and sys.path != list(order.path):
            sys.path[:] = order.path
        known = self._runs.get(attempt.run.run_id)
        if known is None or known[0] != attempt.run:
            if order.token is not None and not has_token(attempt.run, order.token):
                raise Refused(
                    f"{self._where()} does not see the driver's storage {attempt.run.storage}",
                    "set STORAGE_ROOT to what all machines reach, such as s3://bucket/folder or a shared folder",
                )
            while len(self._runs) >= _KNOWN_RUNS:
                del self._runs[next(iter(self._runs))]
            known = self._runs[attempt.run.run_id] = (attempt.run, *self._prepared(attempt.run))
        return msgspec.structs.replace(attempt, run=known[1]), known[2]

    def _prepared(self, run: RunInfo) -> tuple[RunInfo, str]:
        if self._own:
            settings, warning = load_settings(Path(run.project) if run.project else None, run.settings, warn=False), ""
        else:
            own = self._own_settings()
            settings = load_settings(own.project, {**run.settings, **self._kept(own)}, warn=False)
            warning = self._compared(run, settings)
        context = self._with_secrets(run, settings)
        prepared = msgspec.structs.replace(
            run,
            context=context,
            project=str(settings.project) if settings.project is not None else None,
            settings=settings.options,
            masked=KnownSecrets(settings).with_those_of([Context(context, "", run.secrets)]),
        )
        return prepared, warning

    def _own_settings(self) -> Settings:
        if self._settings is None:
            self._settings = load_settings(discovered_project(), warn=False)
        return self._settings

    @staticmethod
    def _kept(own: Settings) -> Mapping[str, JSON]:
        return {"INSTALLED_MODULES": list(own.INSTALLED_MODULES), "CONTEXT_FILES": list(own.CONTEXT_FILES)}

    def _check_module(self, attempt: Attempt) -> None:
        own = self._own_settings()
        module = attempt.spec.cls.partition(":")[0]
        if any(f"{module}.".startswith(f"{installed}.") for installed in own.INSTALLED_MODULES):
            return
        installed = ", ".join(map(repr, own.INSTALLED_MODULES))
        raise NotHere(
            _failed(
                "UnknownTask",
                f"{self._where()} has no module {module!r} in its INSTALLED_MODULES = [{installed}]; start it in the "
                f"project's folder ({own.project or 'it found none'}), or set GLUEPY_INSTALLED_MODULES there",
            )
        )

    def _compared(self, run: RunInfo, settings: Settings) -> str:
        if settings.CODE_CHECK == "ignore" or not run.code_version:
            return ""
        here = code_version(run.modules, settings.project)
        if same_code(here, run.code_version):
            return ""
        text = f"{self._where()} has other code of {', '.join(run.modules)}: {here}, the driver {run.code_version}"
        if settings.CODE_CHECK == "refuse":
            raise NotHere(_failed("OtherCode", f"{text}; bring both to the same version (CODE_CHECK = 'refuse')"))
        return text

    def _with_secrets(self, run: RunInfo, settings: Settings) -> Mapping[str, JSON]:
        if not run.secrets:
            return run.context
        own, context = load_parameters(settings).values, run.context
        missing = []
        for place in map(tuple, run.secrets):
            secret = at_place(own, place)
            if secret is None:
                missing.append(dotted(place))
            context = placed(context, place, secret)
        if missing:
            raise NotHere(
                _failed(
                    "MissingSecret",
                    f"{self._where()} does not have the secret {', '.join(missing)}; secrets do not travel: give it a "
                    "context file of its own that has it (CONTEXT_FILES)",
                )
            )
        return context

    def _where(self) -> str:
        return f"worker {self._worker or 'process'} on {HOST}"


def _failed(error_type: str, message: str) -> Outcome:
    return Outcome(
        status="failed", reason="exception", error_type=error_type, error_message=message, retryable=False, host=HOST
    )
