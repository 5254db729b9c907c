"""Settings of the example: its executor and the executor's own group."""

INSTALLED_MODULES = ["primes"]

EXECUTOR_BACKEND = "subprocess_executor.SubprocessExecutor"

SUBPROCESS = {"prefix": ["nice", "-n", "5"]}
