"""Settings of the retail project. Upper-case names are settings; see `gluepy settings` for all of them."""

INSTALLED_MODULES = ["retail.preprocess", "retail.train"]

EXECUTOR_BACKEND = "gluepy.exec.executors.LocalExecutor"
