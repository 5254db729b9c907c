"""Bugs that a runtime like this is likely to have, each as a change of one place in gluepy, and who catches it."""

from __future__ import annotations

from typing import NamedTuple


class Bug(NamedTuple):
    """In the file of gluepy `was` becomes `is_now`; the tests, as pytest is given them, are to fail of it."""

    file: str
    was: str
    is_now: str
    caught_by: str


BUGS = {
    "fsync skipped under commit": Bug(
        "runs/log.py",
        'if self.sync == "commit":\n            await self._flush()',
        "pass",
        "tests/unit/test_log.py -k breaks_a_commit",
    ),
    "effect before append": Bug(
        "exec/engine.py",
        "                        assert_never(command)\n            self._journal.flush()",
        "                        assert_never(command)\n            self._journal.flush() if not self._work else None",
        "tests/faults/test_crash_points.py -k die_anywhere",
    ),
    "append after start": Bug(
        "exec/engine.py",
        "duration_s)\n        for event in events:\n            self._journal.store(event)\n",
        "duration_s)\n        self._doorbell.ring(self._late, events)\n        return events\n\n"
        "    def _late(self, events: Sequence[e.TaskEvent]) -> None:\n        for event in events:\n"
        "            self._journal.store(event)\n        self._journal.flush()\n",
        "tests/faults/test_crash_points.py -k die_anywhere",
    ),
    "newline repair removed": Bug(
        "runs/log.py",
        '                self._finish(b"\\n", os.write(self._file, b"\\n"))',
        "                pass",
        "tests/faults/test_crash_points.py",
    ),
    "lock dropped": Bug(
        "runs/lock.py",
        "while not all(map(_lock, files)):",
        "while False:",
        "tests/faults/test_two_drivers.py",
    ),
    "attempt number reused": Bug(
        "core/scheduler.py",
        "Start(node, self.state.attempt[node] + 1, now - self._ready_at[node])",
        "Start(node, max(1, self.state.attempt[node]), now - self._ready_at[node])",
        "tests/faults/test_crash_points.py -k die_anywhere",
    ),
    "interrupted attempt taken as finished": Bug(
        "core/resume.py",
        '    RUNNING: "it was interrupted",\n',
        "",
        "tests/faults/test_crash_points.py -k die_anywhere",
    ),
    "retry delay forgotten on resume": Bug(
        "core/scheduler.py",
        "heapq.heappush(self._delayed, (due, node))\n        else:",
        "self._queue(node, now)\n        else:",
        "tests/faults/test_crash_points.py tests/unit/test_simulation.py",
    ),
    "expansion asked again on resume": Bug(
        "exec/engine.py",
        "if attempt.spec.expands and slot.node in self.state.rows:",
        "if False:",
        "tests/faults/test_crash_points.py",
    ),
    "descendants not reset": Bug(
        "core/resume.py",
        "if not cause and behind:",
        "if False:",
        "tests/faults/test_crash_points.py tests/unit/test_simulation.py",
    ),
    "slot released before an abandoned thread ends": Bug(
        "core/scheduler.py",
        "if abandoned and node in self.running:",
        "if False:",
        "tests/unit/test_simulation.py tests/runtime/test_timeouts.py -k 'simulated or abandoned'",
    ),
    "result of a killed worker accepted late": Bug(
        "exec/executors/processes/pool.py",
        "            except anyio.get_cancelled_exc_class():\n                await self._remove(worker)",
        "            except anyio.get_cancelled_exc_class():\n                as_it_was = True",
        "tests/faults/test_late_replies.py",
    ),
    "torn line folded": Bug(
        "runs/log.py",
        'if not line.endswith(b"\\n") and not (self._ended and _is_event(line)):',
        "if False:",
        "tests/unit/test_log.py",
    ),
    "seq restarted on resume": Bug(
        "runtime/session.py",
        "state.session + 1, state.seq, log",
        "state.session + 1, 0, log",
        "tests/faults/test_crash_points.py -k die_anywhere",
    ),
    "cancel not shielded": Bug(
        "exec/engine.py",
        "with anyio.CancelScope(shield=True):\n                        await self._keep_time()",
        "with anyio.CancelScope(shield=False):\n                        await self._keep_time()",
        "tests/runtime/test_cancel_anywhere.py",
    ),
    "turns not taken": Bug(
        "exec/engine.py",
        "self._turn: Turn = threading.Lock() if turn is None else turn",
        "self._turn = threading.Semaphore(1 << 30)",
        "tests/runtime/test_turns.py -k many_runs",
    ),
    "turn entered twice": Bug(
        "runtime/session.py",
        "turn: Turn = field(default_factory=threading.Lock)",
        "turn: Turn = field(default_factory=threading.RLock)",
        "tests/runtime/test_reentry.py -k 'two_steps or many_tasks'",
    ),
    "published where it is told": Bug(
        "exec/journal.py",
        "self._doorbell.ring(self.publish_pending)",
        "self._doorbell.call(self.publish_pending)",
        "tests/runtime/test_reentry.py -k subscriber",
    ),
    "what is emitted in a turn is recorded only after its attempt": Bug(
        "exec/engine.py",
        "        self._emissions.record()  # those that came before it ended\n",
        "",
        "tests/runtime/test_reentry.py",
    ),
    "thread goes on from an attempt that was stopped": Bug(
        "exec/engine.py",
        "if not ended or slot.stopped or self._is_over or self._commits:",
        "if not ended or self._is_over or self._commits:",
        "tests/runtime/test_turn_races.py -k just_timed_out",
    ),
    "attempt begun after its call was cancelled": Bug(
        "exec/executors/local.py",
        "            if not emit.begin():\n                break\n",
        "            emit.begin()\n",
        "tests/runtime/test_turns.py -k never_begins",
    ),
    "attempt begun after the log broke": Bug(
        "exec/engine.py",
        "if slot.stopped or self._is_over:\n                    return",
        "if slot.stopped:\n                    return",
        "tests/runtime/test_turn_races.py -k nothing_begins",
    ),
    "turn taken to print": Bug(
        "exec/emissions.py",
        "            if slot.attempt is attempt:\n                self._journal.output",
        "            with self._turn:\n                self._journal.output",
        "tests/runtime/test_turn_races.py -k whoever_prints",
    ),
}
