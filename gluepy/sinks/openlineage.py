"""The sink `openlineage`: runs, tasks and their datasets, for Marquez and whatever else takes OpenLineage."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from openlineage.client import OpenLineageClient
from openlineage.client.git import get_git_branch, get_git_repo_url
from openlineage.client.transport.noop import NoopConfig, NoopTransport
from pydantic import BaseModel, ConfigDict

from gluepy.core import events as e
from gluepy.errors import SettingsError
from gluepy.redact import masked_text
from gluepy.sinks.openlineage_events import Ancestor, EndOfRun, Lineage, Source, ancestors
from gluepy.sinks.port import Sink

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings

_ALIASES = "OPENLINEAGE__TRANSPORT__"  # variables that the client sets itself, for OPENLINEAGE_URL


class OpenLineageSettings(BaseModel):
    """The group OPENLINEAGE. `url` of the server and `namespace` of the jobs are for OPENLINEAGE_URL and
    OPENLINEAGE_NAMESPACE where these are not set; `repository` is the URL of the code's, by default git's
    origin; an empty one leaves it out."""

    model_config = ConfigDict(extra="forbid")

    url: str | None = None
    namespace: str = "gluepy"
    repository: str | None = None


class OpenLineage(Sink):
    """Has `client` send what runs are in OpenLineage. `files` is the folder of a run's files, with `{run_id}` in it."""

    settings_group: ClassVar = ("OPENLINEAGE", OpenLineageSettings)

    def __init__(
        self,
        client: OpenLineageClient,
        namespace: str,
        files: str,
        *,
        parent: Ancestor | None = None,
        root: Ancestor | None = None,
        source: Source | None = None,
    ) -> None:
        self._client, self._namespace, self._files = client, namespace, files
        self._about: dict[str, Any] = {"parent": parent, "root": root, "source": source}
        self._runs: dict[str, Lineage] = {}
        self._entered = 0

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Made as the variables `OPENLINEAGE_*`, a file `openlineage.yml` and then OPENLINEAGE say. Raises
        `SettingsError` where nothing says where to send."""
        group = settings.group(*cls.settings_group)
        client = _client(group.url, settings)
        try:
            parent, root = ancestors(os.environ)
        except ValueError as error:
            name = str(error)
            raise SettingsError(name, "the environment", "it must be namespace/job/run, the run a UUID") from None
        namespace = os.environ.get("OPENLINEAGE_NAMESPACE") or group.namespace
        source = _source(client, group.repository, settings.project)
        return cls(client, namespace, settings.run_files("{run_id}"), parent=parent, root=root, source=source)

    def __enter__(self) -> Self:
        self._entered += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._entered -= 1
        if not self._entered:
            self._runs.clear()
            self._client.close()

    def __call__(self, event: e.Event) -> None:
        """Send what `event` is to OpenLineage. Raises what the client's transport does."""
        if isinstance(event, e.TaskOutput):
            return
        lineage = self._runs.get(event.run_id)
        if lineage is None:
            files = self._files.replace("{run_id}", event.run_id)
            lineage = self._runs[event.run_id] = Lineage(self._namespace, files, **self._about)
        for told in lineage.of(event):
            self._client.emit(told)
        if isinstance(event, EndOfRun):
            del self._runs[event.run_id]


def _client(url: str | None, settings: Settings) -> OpenLineageClient:
    before = {name for name in os.environ if name.startswith(_ALIASES)}
    try:
        said = OpenLineageClient(transport=NoopTransport(NoopConfig())).config.transport or {}
        if said.get("type") or any(os.environ.get(name) for name in ("OPENLINEAGE_URL", "OPENLINEAGE_DISABLED")):
            return OpenLineageClient()
        if url is not None:
            return OpenLineageClient(config={"transport": {"type": "http", "url": url}})
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        why = f"OpenLineage's client does not take it: {masked_text(str(error))}"
        raise SettingsError("OPENLINEAGE", settings.source("OPENLINEAGE"), why, "set OPENLINEAGE_URL") from None
    finally:
        for name in [name for name in os.environ if name.startswith(_ALIASES) and name not in before]:
            del os.environ[name]  # they would outlast a change of OPENLINEAGE_URL
    why = "nothing says where to send OpenLineage events"
    raise SettingsError("OPENLINEAGE.url", settings.source("OPENLINEAGE"), why, "set it, or OPENLINEAGE_URL")


def _source(client: OpenLineageClient, repository: str | None, project: Path | None) -> Source | None:
    """Where the code is, as the client's own configuration, OPENLINEAGE and then git say."""
    said, folder = client.config.facets.source_code_location, (project or Path.cwd()).absolute()
    top = next((each for each in (folder, *folder.parents) if (each / ".git").is_dir()), None)
    url, branch, below = said.repo_url or repository, said.branch, ""
    if top is not None:
        url = get_git_repo_url(git_dir=top / ".git") if url is None else url
        branch = branch or get_git_branch(top / ".git")
        below = "".join(f"{part}/" for part in folder.relative_to(top).parts)
    return Source(_as_uri(url), branch, below) if url else None


def _as_uri(url: str) -> str:
    """What git calls a URL as a URI, without who logs in: `git@host:shop.git` is `ssh://host/shop.git`."""
    if "://" not in url:
        host, colon, path = url.partition(":")
        url = f"ssh://{host}/{path.lstrip('/')}" if colon and "/" not in host else Path(url).absolute().as_uri()
    return re.sub("(?<=://)[^/@]*@", "", url)
