"""Where attempts enter a process that runs them: a message comes in, its task runs, an outcome goes back.

Both ways all is msgpack of plain data. An exception travels as type, message and traceback text; the object itself
only between processes of one machine, and only if it survives pickling there and back.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from gluepy.conf.project import put_on_path
from gluepy.core.graph import Spec
from gluepy.exec.boundary import execute, execute_async, failed, load, run_scope
from gluepy.exec.executors.capture import AttemptOutput, tell_failure
from gluepy.exec.executors.following import follow_threads
from gluepy.exec.executors.logs import capture_logging, settle_logging, watch_streams
from gluepy.exec.executors.streams import capturing
from gluepy.exec.port import FINISHED, Attempt, Emission, Outcome, Output, RunInfo
from gluepy.exec.scope import RunScope, Scope, enter_scope, leave_scope, redactor_of
from gluepy.loop import run_loop
from gluepy.tracing import variables

_encoder = msgspec.msgpack.Encoder()
_emissions: msgspec.msgpack.Decoder[Emission] = msgspec.msgpack.Decoder(Emission)
_message: msgspec.msgpack.Decoder[tuple[msgspec.Raw, str, int, int, dict[str, Any], str]] = msgspec.msgpack.Decoder(
    tuple[msgspec.Raw, str, int, int, dict[str, Any], str]
)
_KNOWN_RUNS = 8
_CHAIN = 8  # causes of causes
_LARGEST = 1 << 20  # bytes of a pickled exception
_KNOWN_SPECS = 256
_scopes: dict[int, tuple[bytes, RunScope]] = {}  # by the identity of the bytes, which a worker keeps
_specs: dict[bytes, Spec] = {}


def run_message(shared: bytes, payload: bytes, send: Callable[[bytes], None]) -> bytes | Callable[[], bytes]:
    """Run the attempt in `payload` (`attempt_message`) of the run in `shared` (`encode_run`); what its task emits
    goes to `send`. Returns what `outcome_of` reads, or what is to be called for it: then its module is imported.
    Called in a worker process."""
    known = _scopes.get(id(shared))
    if known is None or known[0] is not shared:
        if len(_scopes) >= _KNOWN_RUNS:
            _scopes.clear()
        known = _scopes[id(shared)] = (shared, run_scope(msgspec.msgpack.decode(shared, type=RunInfo)))
        _set_up_tracing(known[1].run)
    scope = known[1]
    run = scope.run
    spec, task, number, max_attempts, params, pool = _message.decode(payload)
    attempt = Attempt(run, _spec_of(bytes(spec)), task, number, max_attempts, params, pool)

    def emit(emission: Emission) -> None:
        send(_encoder.encode(emission))

    output = None
    if run.capture:
        output = AttemptOutput(
            None, lambda emission: emit(emission) if isinstance(emission, Output) else None, redactor_of(attempt)
        )
    _take_over(run.capture)
    own = Scope(scope, attempt, emit, output)
    token = enter_scope(own)
    try:
        target = load(attempt.spec.cls)
    except BaseException as error:
        return _ended(failed(attempt, error, own), output)
    finally:
        leave_scope(token)
    attempt = msgspec.structs.replace(attempt, target=target)

    def run_it() -> bytes:
        with _in_trace(attempt):
            if pool == "loop":  # on another machine: in the driver its event loop runs them
                return _ended(run_loop(execute_async, attempt, own), output)
            return _ended(execute(attempt, own), output)

    return run_it


def _in_trace(attempt: Attempt) -> AbstractContextManager[None]:
    """The environment that what the attempt starts gets, in a process that runs nothing else."""
    if attempt.traceparent is None or attempt.run.trace is None:
        return nullcontext()
    return variables(attempt.traceparent, attempt.run.trace.state)


def _set_up_tracing(run: RunInfo) -> None:
    """Have what tasks trace by themselves exported too, if the driver has set that up."""
    if run.trace is not None and run.trace.sdk is not None:
        from gluepy.otelsdk import set_up

        set_up(run.trace.sdk)


def _ended(outcome: Outcome, output: AttemptOutput | None) -> bytes:
    if output is not None:
        settle_logging()
        output.close()
    if outcome is FINISHED:
        return b""
    return _encoder.encode((msgspec.structs.replace(outcome, exception=None), _pickled(outcome.exception)))


def _spec_of(message: bytes) -> Spec:
    """What `message` says; a worker runs many tasks of few specs."""
    spec = _specs.get(message)
    if spec is None:
        if len(_specs) >= _KNOWN_SPECS:
            _specs.clear()
        spec = _specs[message] = msgspec.msgpack.decode(message, type=Spec)
    return spec


def encode_run(run: RunInfo) -> bytes:
    """`run` as bytes for `run_message`."""
    return _encoder.encode(run)


def attempt_message(attempt: Attempt) -> bytes:
    """`attempt`, but for its run, as bytes for `run_message`."""
    return _encoder.encode(
        (attempt.spec, attempt.task, attempt.number, attempt.max_attempts, dict(attempt.params), attempt.pool)
    )


def decode_emission(message: bytes) -> Emission:
    """The emission in a message that `run_message` sent."""
    return _emissions.decode(message)


def outcome_of(body: bytes) -> Outcome:
    """The outcome in what `run_message` returned."""
    if not body:
        return FINISHED
    outcome, chain = msgspec.msgpack.decode(body, type=tuple[Outcome, list[bytes]])
    exception: BaseException | None = None
    try:
        for data in reversed(chain):
            error = _Unpickler(io.BytesIO(data)).load()
            error.__cause__ = exception
            exception = error
    except Exception:  # a class cannot be had here
        return outcome
    return msgspec.structs.replace(outcome, exception=exception) if chain else outcome


class _Unpickler(pickle.Unpickler):  # what it reads was written by our own worker, on this machine
    def find_class(self, module: str, name: str) -> Any:
        # a worker knows the driver's main script by the name that multiprocessing gives it
        return super().find_class("__main__" if module == "__mp_main__" else module, name)


def run_attempt(attempt: Attempt, emit: Callable[[Emission], None]) -> Outcome:
    """Run `attempt`, plain or async, here and now, and tell how it ended: for the process that an executor has
    started for it, which runs nothing else meanwhile.

    The run's project goes on `sys.path`. `emit` gets metrics and progress and, while the run captures, what the task
    prints and logs as `Output`, also the traceback of a failure; from whatever thread they come. What it writes to the
    descriptors themselves is left to the caller.
    """
    run = attempt.run
    if run.project:
        put_on_path(Path(run.project))
    _set_up_tracing(run)
    with ExitStack() as stack:
        output = None
        if run.capture:
            stack.enter_context(capturing())
            output = AttemptOutput(None, emit, redactor_of(attempt))
            stack.callback(output.close)
        scope = Scope(run_scope(run), attempt, emit, output)
        stack.enter_context(_in_trace(attempt))
        if attempt.pool == "loop":
            stack.callback(leave_scope, enter_scope(scope))
            outcome = run_loop(execute_async, attempt, scope)
        else:
            outcome = execute(attempt, scope)
        if output is not None:
            tell_failure(attempt, outcome, output)
    return outcome


_captured: list[Callable[[], None]] = []
_watched: list[bool] = []


def _take_over(capture: bool) -> None:
    """Make this worker process ready for a call: what is printed is captured by its descriptors, log lines take another
    way. What a call does to that is undone after it, as all that it does to its process."""
    if not _watched:
        _watched.append(True)
        follow_threads()
        watch_streams()
    if capture != bool(_captured):
        if capture:
            _captured.append(capture_logging())
        else:
            _captured.pop()()


def _pickled(error: BaseException | None) -> list[bytes]:
    """`error` and its causes, the outermost first, as far as they survive pickling there and back."""
    chain: list[bytes] = []
    while error is not None and not isinstance(error, SystemExit) and len(chain) < _CHAIN:
        traceback, error.__traceback__ = error.__traceback__, None
        try:
            data = pickle.dumps(error)
            if not isinstance(pickle.loads(data), type(error)) or len(data) > _LARGEST:  # noqa: S301 - made here
                break
            chain.append(data)
        except Exception:
            break
        finally:
            error.__traceback__ = traceback
        error = error.__cause__
    return chain
