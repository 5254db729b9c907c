"""`AirflowExecutor`: the graph is scheduled by Airflow, over its REST interface (version 2 of it, Airflow 3).

https://airflow.apache.org/docs/apache-airflow/stable/stable-rest-api-ref.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Self

import anyio
from pydantic import BaseModel, Field

from gluepy.core.graph import Graph, Leaf, Seq, slug_of
from gluepy.errors import DagError, ExecutorBroken, MissingExtra, SettingsError
from gluepy.exec.graph_level import Abilities, GraphExecutor, GraphRun, TaskWord

if TYPE_CHECKING:
    import httpx

    from gluepy.conf.schema import Settings

_PAGE = 100  # task instances a request
_STOP_S = 45.0  # how long tasks may take to stop
_WORDS: dict[str | None, TaskWord] = {
    "success": "success",
    "failed": "failed",
    "skipped": "skipped",
    "upstream_failed": "blocked",
    "removed": "cancelled",
    "running": "running",
}
_OVER = ("success", "failed")


class AirflowSettings(BaseModel):
    """The group AIRFLOW: `url` of its API server, `username` and `password`, or a `token`; `dag_id` (default: the DAG's
    label). It is asked every `poll_s` seconds, and may be away for `patience_s`."""

    url: str = "http://127.0.0.1:8080"
    username: str | None = None
    password: str | None = None
    token: str | None = None
    dag_id: str | None = None
    poll_s: float = Field(1.0, gt=0)
    patience_s: float = Field(120.0, ge=0)


class AirflowExecutor(GraphExecutor):
    """Has Airflow run its DAG of the same graph, which `gluepy airflow export` or `to_airflow` has made."""

    settings_group: ClassVar = ("AIRFLOW", AirflowSettings)
    abilities: ClassVar = Abilities(
        triggers=frozenset(("all_success", "none_failed", "none_failed_min_one_success", "all_done", "one_failed")),
        dynamic_each=True,
        limits=True,
        retries=True,
        queues=True,
    )

    def __init__(self, settings: AirflowSettings) -> None:
        self._settings = settings

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Made from AIRFLOW. Raises `MissingExtra`, and `SettingsError` where nothing says who asks."""
        if find_spec("httpx") is None:
            raise MissingExtra("the executor airflow", "airflow")
        group = settings.group(*cls.settings_group)
        if group.token is None and (group.username is None or group.password is None):
            raise SettingsError(
                "AIRFLOW", settings.source("AIRFLOW"), "it has neither token nor username and password", "give one"
            )
        return cls(group)

    @classmethod
    def check_graph(cls, graph: Graph) -> None:
        """`check`, before there is an executor."""
        cls(AirflowSettings(poll_s=1.0, patience_s=0.0)).check(graph)

    def check(self, graph: Graph) -> None:
        """Raises `DagError` for what Airflow cannot do."""
        super().check(graph)
        for spec in graph.specs:
            if len(spec.uses) > 1:
                why = f"Airflow has one pool a task, and it uses {', '.join(spec.uses)}"
                raise DagError(f"task {spec.label}", why, "let it use one limit")
        for node in graph.tasks():
            each = graph.expandable(node)
            if each is not None and not _is_chain(each.item):
                why = "Airflow maps a task or a chain of tasks, and nothing else"
                raise DagError(f"task {graph.task_id(node)}", why, "put `parallel` inside the each into several DAGs")

    async def run_graph(self, run: GraphRun) -> None:
        """See the base."""
        dag = self._settings.dag_id or run.info.dag
        async with self._client() as client:
            api = _Api(self.name, client, self._settings)
            await self._hand_over(api, dag, run)
            try:
                await self._follow(api, dag, run)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await self._stop(api, dag, run)
                raise

    async def _hand_over(self, api: _Api, dag: str, run: GraphRun) -> None:
        found = await api.call("GET", f"/dags/{dag}", missing=True)
        if found is None:
            hint = f"write its file: gluepy airflow export {run.info.dag} > DAGS_FOLDER/{dag}.py"
            raise ExecutorBroken(self.name, f"Airflow at {self._settings.url} has no DAG {dag!r}", hint)
        there = {task["task_id"] for task in (await api.call("GET", f"/dags/{dag}/tasks"))["tasks"]}
        missing = sorted({slug_of(task) for task in run.tasks if run.graph.index[task] not in run.graph.origin} - there)
        if missing:
            hint = f"write its file again: gluepy airflow export {run.info.dag}"
            raise ExecutorBroken(self.name, f"Airflow's DAG {dag!r} has no {', '.join(missing[:5])}", hint)
        for name in {name for spec in run.graph.specs for name in spec.uses}:
            if await api.call("GET", f"/pools/{name}", missing=True) is None:
                pool = {
                    "name": name,
                    "slots": run.limits[name],
                    "description": "a limit of gluepy's",
                    "include_deferred": False,
                }
                await api.call("POST", "/pools", json=pool, known=True)
        if found["is_paused"]:
            await api.call("PATCH", f"/dags/{dag}", json={"is_paused": False})
        run_id = run.info.run_id
        if run.session > 1:
            before = await api.call("GET", f"/dags/{dag}/dagRuns/{run_id}", missing=True)
            if before is not None:
                await self._again(api, dag, run, before["state"])
                return
        body = {"dag_run_id": run_id, "logical_date": None, "conf": {"gluepy_run": run_id}}
        await api.call("POST", f"/dags/{dag}/dagRuns", json=body, known=True)

    async def _again(self, api: _Api, dag: str, run: GraphRun, state: str) -> None:
        """Have Airflow run tasks again in its run of the earlier session, or go on with it."""
        if state not in _OVER:
            return
        tasks = [slug_of(task) for task in run.tasks]
        known = {task["task_id"] for task in (await api.call("GET", f"/dags/{dag}/tasks"))["tasks"]}
        mapped = {run.graph.spec(run.graph.index[task]).label for task in run.tasks if slug_of(task) not in known}
        clear = {
            "dry_run": False,
            "dag_run_id": run.info.run_id,
            "task_ids": [task for task in (*tasks, *sorted(mapped)) if task in known],
            "only_failed": False,
            "include_downstream": False,
            "reset_dag_runs": True,
        }
        await api.call("POST", f"/dags/{dag}/clearTaskInstances", json=clear)

    async def _follow(self, api: _Api, dag: str, run: GraphRun) -> None:
        by_slug = {slug_of(task): task for task in run.graph.index}
        while True:
            state = (await api.call("GET", f"/dags/{dag}/dagRuns/{run.info.run_id}"))["state"]
            async for instance in api.instances(dag, run.info.run_id):
                task = by_slug.get(instance["task_id"])
                if instance["map_index"] >= 0:
                    name = instance.get("rendered_map_index") or ""
                    task = name if name in run.graph.index else None
                if task is not None:
                    run.tell(task, _WORDS.get(instance["state"], "waiting"), "")
            if state in _OVER:
                return
            await anyio.sleep(self._settings.poll_s)

    async def _stop(self, api: _Api, dag: str, run: GraphRun) -> None:
        where = f"/dags/{dag}/dagRuns/{run.info.run_id}"
        with anyio.move_on_after(_STOP_S):
            await api.call("PATCH", where, json={"state": "failed"})
            while True:
                states = {each["state"] async for each in api.instances(dag, run.info.run_id)}
                if not states & {"running", "queued", "restarting"}:
                    return
                await anyio.sleep(self._settings.poll_s)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        import httpx

        async with httpx.AsyncClient(base_url=self._settings.url.rstrip("/"), timeout=30.0) as client:
            yield client


def _is_chain(element: Any) -> bool:
    return isinstance(element, Leaf) or (
        isinstance(element, Seq) and all(isinstance(item, Leaf) for item in element.items)
    )


class _Api:
    """Calls of the REST interface: with a token, again while the server is away."""

    def __init__(self, executor: str, client: httpx.AsyncClient, settings: AirflowSettings) -> None:
        self._executor, self._client, self._settings = executor, client, settings
        self._token = settings.token

    async def call(
        self, method: str, path: str, *, json: Any = None, missing: bool = False, known: bool = False
    ) -> Any:
        """The answer's JSON; None for a 404 that may be (`missing`), or a 409 (`known`). Raises `ExecutorBroken`."""
        import httpx

        url, end = self._settings.url, anyio.current_time() + self._settings.patience_s
        renewed = False
        while True:
            try:
                if self._token is None:
                    self._token = await self._login()
                headers = {"Authorization": f"Bearer {self._token}"}
                answer = await self._client.request(method, f"/api/v2{path}", json=json, headers=headers)
            except httpx.TransportError as error:
                if anyio.current_time() > end:
                    why = f"cannot reach Airflow at {url}: {error or type(error).__name__}"
                    raise ExecutorBroken(self._executor, why, "see AIRFLOW.url; then resume the run") from error
                await anyio.sleep(self._settings.poll_s)
                continue
            code = answer.status_code
            if code == 401 and self._settings.token is None and not renewed:  # it has run out
                self._token, renewed = None, True
            elif code in (429, 500, 502, 503, 504) and anyio.current_time() <= end:
                await anyio.sleep(self._settings.poll_s)
            elif (code == 404 and missing) or (code == 409 and known):
                return None
            elif answer.is_success:
                return answer.json() if answer.content else None
            else:
                why = f"Airflow at {url} answers {code} to {method} {path}: {answer.text[:300]}"
                raise ExecutorBroken(self._executor, why, "see AIRFLOW" if code in (401, 403) else "")

    async def instances(self, dag: str, run: str) -> AsyncIterator[dict[str, Any]]:
        """The task instances of a run."""
        offset = 0
        while True:
            path = f"/dags/{dag}/dagRuns/{run}/taskInstances?limit={_PAGE}&offset={offset}"
            page = await self.call("GET", path)
            for instance in page["task_instances"]:
                yield instance
            offset += _PAGE
            if offset >= page["total_entries"]:
                return

    async def _login(self) -> str:
        body = {"username": self._settings.username, "password": self._settings.password}
        answer = await self._client.post("/auth/token", json=body)
        if answer.status_code in (400, 401, 403, 422):
            why = f"Airflow at {self._settings.url} refuses {self._settings.username!r} ({answer.status_code})"
            raise ExecutorBroken(self._executor, why, "see AIRFLOW.username and AIRFLOW.password")
        token: str = answer.raise_for_status().json()["access_token"]
        return token
