"""What a run is in OpenLineage: its events made of gluepy's, as pure functions of the stream.

A session of a run is an OpenLineage run of the job `<dag>`, an attempt one of the job `<dag>.<task>`, since each may
start and end once. Ids are derived and times are those of the events, so a record that is sent again gives the same
events. https://openlineage.io/docs/spec/object-model
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

from openlineage.client import event_v2 as ol
from openlineage.client import facet_v2 as f
from openlineage.client.event_v2 import RunState
from openlineage.client.facet_v2 import DatasetFacet, JobFacet, RunFacet

from gluepy.core import events as e
from gluepy.core.graph import Spec, Tree, leaves
from gluepy.core.identity import derived_uuid, run_uuid
from gluepy.sinks.openlineage_datasets import PRODUCER, dataset_name, facets_of, input_statistics, output_statistics

EndOfRun = e.RunFinished | e.RunFailed | e.RunCancelled


class Ancestor(NamedTuple):
    """A run of another system that gluepy's is part of."""

    namespace: str
    name: str
    run_id: str

    @classmethod
    def parsed(cls, text: str) -> Self:
        """From `namespace/job/run`, as OPENLINEAGE_PARENT_ID has it; a namespace may have slashes. Raises
        `ValueError`."""
        import uuid

        namespace, job, run_id = text.rsplit("/", 2)
        return cls(unquote(namespace), unquote(job), str(uuid.UUID(run_id)))


class Source(NamedTuple):
    """Where the code is: the URL of its repository, the branch if it is known, and the project's folder there (empty
    or with a slash at the end)."""

    url: str
    branch: str | None = None
    folder: str = ""


def session_id(run_id: str, session: int) -> str:
    """The OpenLineage run of a session: of the first one, the run's own id."""
    return str(run_uuid(run_id) if session == 1 else derived_uuid(run_id, "session", session))


def attempt_id(run_id: str, task: str, attempt: int) -> str:
    """The OpenLineage run of an attempt."""
    return str(derived_uuid(run_id, "task", task, attempt))


class Lineage:
    """Makes the events of one run, given its events in order.

    `namespace` is that of the jobs, `files` where the tasks keep their files; `parent` and `root` are what the run is
    part of, `source` where its code is.
    """

    def __init__(
        self,
        namespace: str,
        files: str,
        *,
        parent: Ancestor | None = None,
        root: Ancestor | None = None,
        source: Source | None = None,
    ) -> None:
        self._namespace, self._files, self._source = namespace, files.rstrip("/"), source
        self._parent, self._root = parent, root or parent
        self._specs: dict[str, Spec] = {}
        self._version = self._code_version = self._began = ""
        self._is_running, self._told_of_end = False, False
        self._running: set[str] = set()  # tasks whose attempt has shown a sign of life
        self._failures: list[str] = []
        self._read: dict[str, dict[str, e.DatasetRead]] = {}  # by task and URL, of attempts that have not ended
        self._written: dict[str, dict[str, e.DatasetWritten]] = {}

    def of(self, event: e.Event) -> Iterator[ol.RunEvent]:
        """What `event` is to OpenLineage: most often one event or none."""
        match event:
            case e.RunStarted() | e.RunResumed():
                self._begin(event)
                yield self._run(event, RunState.START)
            case e.RunFinished():
                yield self._run(event, RunState.COMPLETE)
            case e.RunFailed():
                yield self._run(event, RunState.FAIL, self._why(event))
            case e.RunCancelled():
                yield self._run(event, RunState.ABORT)
            case e.TaskStarted():
                if not self._is_running:
                    self._is_running = True
                    yield self._run(event, RunState.RUNNING)
                yield self._attempt(event, RunState.START)
            case e.TaskFailed(reason="interrupted"):
                if not self._told_of_end:  # the session before had no end of its own
                    self._told_of_end = True
                    yield self._run(event, RunState.ABORT, session=event.session - 1)
                yield self._attempt(event, RunState.ABORT, _error(event))
            case e.TaskFailed() | e.TaskRetrying():
                if isinstance(event, e.TaskFailed):
                    self._failures.append(event.task)
                yield self._attempt(event, RunState.FAIL, _error(event))
            case e.TaskFinished() | e.TaskSkipped() if event.attempt:
                yield self._attempt(event, RunState.COMPLETE)
            case e.TaskCancelled() if event.attempt:
                yield self._attempt(event, RunState.ABORT)
            case e.DatasetRead():
                self._read.setdefault(event.task, {})[event.url] = event
            case e.DatasetWritten():
                self._written.setdefault(event.task, {})[event.url] = event
            case e.TaskProgress() | e.TaskMetric() if event.task not in self._running:
                self._running.add(event.task)
                yield self._attempt(event, RunState.RUNNING)
            case _:
                pass

    def _begin(self, event: e.RunStarted | e.RunResumed) -> None:
        tree = Tree.from_record(event.graph)
        self._specs = {spec.label: spec for spec in tree.specs}
        self._specs |= {leaf.id: tree.specs[leaf.spec] for leaf in leaves(tree.root) if leaf.id is not None}
        self._version, self._code_version, self._began = event.gluepy_version, event.code_version, event.timestamp
        self._is_running, self._told_of_end = False, False
        for left in (self._running, self._failures, self._read, self._written):
            left.clear()

    def _run(
        self, event: e.Event, state: RunState, error: RunFacet | None = None, session: int | None = None
    ) -> ol.RunEvent:
        facets = self._run_facets(event)
        if error is not None:
            facets["errorMessage"] = error
        if self._parent is not None:
            facets["parent"] = self._parent_facet(self._parent, self._root or self._parent)
        run_id = session_id(event.run_id, session or event.session)
        return self._event(event, state, ol.Run(run_id, facets), ol.Job(self._namespace, event.dag, self._about("DAG")))

    def _attempt(self, event: e.TaskEvent, state: RunState, error: RunFacet | None = None) -> ol.RunEvent:
        own = Ancestor(self._namespace, event.dag, session_id(event.run_id, self._session_of(event)))
        facets = self._run_facets(event)
        facets["parent"] = self._parent_facet(own, self._root or own)
        if error is not None:
            facets["errorMessage"] = error
        spec = self._specs.get(event.task) or self._specs.get(event.task.partition("[")[0])
        job = ol.Job(self._namespace, f"{event.dag}.{event.task}", self._about("TASK", spec))
        run = ol.Run(attempt_id(event.run_id, event.task, event.attempt), facets)
        made = self._event(event, state, run, job)
        inputs, outputs = ((), ()) if spec is None else (spec.inputs, spec.outputs)
        if isinstance(event, e.TaskSkipped):
            outputs = ()
        made.inputs = [
            ol.InputDataset(
                *name, facets=facets, inputFacets={} if told is None else {"inputStatistics": input_statistics(told)}
            )
            for name, facets, told in self._datasets(event, inputs, self._read.get(event.task, {}))
        ]
        made.outputs = [
            ol.OutputDataset(
                *name,
                facets=facets,
                outputFacets={} if told is None else {"outputStatistics": output_statistics(told)},
            )
            for name, facets, told in self._datasets(event, outputs, self._written.get(event.task, {}))
        ]
        if state not in (RunState.START, RunState.RUNNING):
            self._running.discard(event.task)
            self._read.pop(event.task, None)
            self._written.pop(event.task, None)
        return made

    @staticmethod
    def _session_of(event: e.TaskEvent) -> int:
        """The session that the attempt was in: an interrupted one's end is told in the next."""
        is_late = isinstance(event, e.TaskFailed) and event.reason == "interrupted"
        return event.session - 1 if is_late else event.session

    @staticmethod
    def _event(event: e.Event, state: RunState, run: ol.Run, job: ol.Job) -> ol.RunEvent:
        return ol.RunEvent(eventType=state, eventTime=event.timestamp, run=run, job=job, producer=PRODUCER)

    def _run_facets(self, event: e.Event) -> dict[str, RunFacet]:
        engine = f.processing_engine_run.ProcessingEngineRunFacet(self._version, "gluepy", producer=PRODUCER)
        own: dict[str, Any] = {"runId": event.run_id, "session": event.session}
        if isinstance(event, e.TaskEvent):
            own |= {"task": event.task, "attempt": event.attempt}
        return {
            "processing_engine": engine,
            "nominalTime": f.nominal_time_run.NominalTimeRunFacet(self._began, producer=PRODUCER),
            "gluepy": RunFacet(producer=PRODUCER).with_additional_properties(**own),  # type: ignore[dict-item]
        }

    def _about(self, kind: str, spec: Spec | None = None) -> dict[str, JobFacet]:
        job_type = f.job_type_job.JobTypeJobFacet("BATCH", "GLUEPY", kind, producer=PRODUCER)
        facets: dict[str, JobFacet] = {"jobType": job_type}
        if self._source is not None:
            commit, plus, _ = self._code_version.partition("+")
            facets["sourceCodeLocation"] = f.source_code_location_job.SourceCodeLocationJobFacet(
                "git",
                self._source.url,
                repoUrl=self._source.url,
                path=None
                if spec is None
                else self._source.folder + spec.cls.partition(":")[0].replace(".", "/") + ".py",
                version=commit if plus else None,
                branch=self._source.branch,
                producer=PRODUCER,
            )
        return facets

    @staticmethod
    def _parent_facet(parent: Ancestor, root: Ancestor) -> RunFacet:
        p = f.parent_run
        top = p.Root(p.RootRun(root.run_id), p.RootJob(root.namespace, root.name))
        return p.ParentRunFacet(p.Run(parent.run_id), p.Job(parent.namespace, parent.name), top, producer=PRODUCER)

    def _datasets(
        self, event: e.TaskEvent, declared: Iterable[str], told: Mapping[str, e.DatasetEvent]
    ) -> Iterator[tuple[tuple[str, str], dict[str, DatasetFacet], e.DatasetEvent | None]]:
        """What a task declares, and what it has told that it read or wrote, by namespace and name. Files that each run
        has anew have another name too, which is the same in all runs of the DAG."""
        urls = [name if "://" in name or name.startswith("/") else f"{self._files}/{name}" for name in declared]
        known = {dataset_name(dataset.url): dataset for dataset in told.values()}
        for name in dict.fromkeys([*map(dataset_name, urls), *known]):
            facets: dict[str, DatasetFacet] = {}
            namespace, path = dataset_name(self._files)
            if name[0] == namespace and name[1].startswith(f"{path}/"):
                same = f"{event.dag}/{name[1].removeprefix(path + '/')}"
                s = f.symlinks_dataset
                identifier = s.Identifier(self._namespace, same, "FILE")
                facets["symlinks"] = s.SymlinksDatasetFacet([identifier], producer=PRODUCER)
            dataset = known.get(name)
            if dataset is not None:
                facets |= facets_of(dataset)
            yield name, facets, dataset

    def _why(self, event: e.RunFailed) -> RunFacet:
        failed = event.failed or self._failures
        some = ", ".join(failed[:10]) + (", …" if len(failed) > 10 else "")
        text = f"{len(failed)} task{'s' if len(failed) != 1 else ''} failed: {some}" if failed else "the run failed"
        if event.reason == "timeout":
            text = f"the run was out of time; {text}" if failed else "the run was out of time"
        return f.error_message_run.ErrorMessageRunFacet(text, "python", producer=PRODUCER)


def _error(event: e.TaskFailed | e.TaskRetrying) -> RunFacet:
    text = f"{event.error_type}: {event.error_message}"
    return f.error_message_run.ErrorMessageRunFacet(text, "python", event.error_stack, producer=PRODUCER)


def ancestors(environment: Mapping[str, str]) -> tuple[Ancestor | None, Ancestor | None]:
    """Parent and root of runs here, by OPENLINEAGE_PARENT_ID and OPENLINEAGE_ROOT_PARENT_ID. Raises `ValueError`, which
    names the variable."""
    found: list[Ancestor | None] = []
    for name in ("OPENLINEAGE_PARENT_ID", "OPENLINEAGE_ROOT_PARENT_ID"):
        text = environment.get(name)
        try:
            found.append(Ancestor.parsed(text) if text else None)
        except ValueError:
            raise ValueError(name) from None
    return found[0], found[1]
