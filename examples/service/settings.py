"""Settings of the service's pipelines."""

INSTALLED_MODULES = ["pi"]

POOL = "process"  # a run that is cancelled frees its cores at once
