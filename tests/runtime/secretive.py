"""Tasks that tell their secrets in every way there is."""

from __future__ import annotations

import logging
import os
import sys

from gluepy import Skip, Task

SECRET = "hunter2-and-more"
KEY = "-----BEGIN KEY-----\nMIIEvgIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----"


class Tells(Task):
    """Tells the secrets of the context, by each stream, in an error with causes, in the name of a metric."""

    def run(self) -> None:
        secret = self.context.db.password
        print("printed", secret)
        for piece in ("split ", secret[:5], secret[5:], "\n"):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print("err", repr(secret), file=sys.stderr)
        sys.stderr.write(f"\rdrawn {secret}")
        sys.stderr.write(f"\rdrawn at last {secret}\n")
        print(self.context.private_key)
        print("number", self.context.pin_secret, f"1{self.context.pin_secret}")
        print("environment", os.environ["OUR_API_TOKEN"])
        print("unknown password=rosebud; url https://me:rosebud@host/x?token=rosebud&page=2")
        logging.getLogger("a").warning("logged %s", secret)
        self.log.info("structured", password="rosebud", secret=secret)
        self.metric(f"metric-{secret}", 1)
        self.progress(1, 2)
        try:
            raise KeyError(secret)
        except KeyError as error:
            raise ValueError(f"cannot log in with {secret} or\n{self.context.private_key}") from error


class LoopTells(Tells):
    async def run(self) -> None:  # type: ignore[override]
        Tells.run(self)


class ProcessTells(Tells):
    pool = "process"


class Skips(Task):
    def run(self) -> None:
        raise Skip(f"no access with {self.context.db.password}")


class ProcessSkips(Skips):
    pool = "process"


class OwnToken(Task):
    token: str

    def run(self) -> None:
        print("own", self.token)


class ProcessDies(Task):
    pool = "process"

    def run(self) -> None:
        print("dying with", self.context.db.password, file=sys.stderr, flush=True)
        os._exit(3)
