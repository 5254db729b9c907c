"""Datasets as OpenLineage has them: their names, and what is known of them."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from openlineage.client import facet_v2 as f
from openlineage.client.facet_v2 import DatasetFacet

from gluepy.core.events import DatasetEvent

PRODUCER = "https://pypi.org/project/gluepy"  # what facets and events name as the one that made them
_OBJECT_STORES = {"s3": "s3", "s3a": "s3", "s3n": "s3", "gs": "gs", "gcs": "gs", "wasb": "wasb", "wasbs": "wasbs"}
_ABFSS = ("abfs", "abfss", "az")
_AZURE = ".dfs.core.windows.net"


def dataset_name(url: str) -> tuple[str, str]:
    """Namespace and name of a dataset at a URL or an absolute path, by OpenLineage's naming rules.

    https://openlineage.io/docs/spec/naming
    """
    if "://" not in url:
        return "file", url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    path = url.split("://", 1)[1].removeprefix(parts.netloc)
    scheme = parts.scheme.lower()
    if scheme in ("file", "local"):
        return (f"file://{host}" if host else "file"), unquote(path)
    if scheme in _ABFSS:  # the user of such a URL is the container
        container, _, account = parts.netloc.partition("@")
        account = account if not account or "." in account else account + _AZURE
        return f"abfss://{container}{'@' if account else ''}{account}", path.strip("/") or "/"
    if scheme in _OBJECT_STORES:
        authority = parts.netloc if scheme.startswith("wasb") else host
        return f"{_OBJECT_STORES[scheme]}://{authority}", path.strip("/") or "/"
    return f"{scheme}://{host}", path or "/"


def facets_of(dataset: DatasetEvent) -> dict[str, DatasetFacet]:
    """What is known of a dataset apart from how large it is."""
    version = f.dataset_version_dataset.DatasetVersionDatasetFacet(dataset.fingerprint, producer=PRODUCER)
    facets: dict[str, DatasetFacet] = {"version": version}
    if dataset.columns is not None:
        s = f.schema_dataset
        fields = [
            s.SchemaDatasetFacetFields(name, type, ordinal_position=number)
            for number, (name, type) in enumerate(dataset.columns.items(), 1)
        ]
        facets["schema"] = s.SchemaDatasetFacet(fields, producer=PRODUCER)
    return facets


def input_statistics(dataset: DatasetEvent) -> f.InputDatasetFacet:
    """How large a dataset is that was read."""
    made = f.input_statistics_input_dataset.InputStatisticsInputDatasetFacet
    return made(dataset.rows, dataset.bytes, producer=PRODUCER)


def output_statistics(dataset: DatasetEvent) -> f.OutputDatasetFacet:
    """How large a dataset is that was written."""
    made = f.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet
    return made(dataset.rows, dataset.bytes, producer=PRODUCER)
