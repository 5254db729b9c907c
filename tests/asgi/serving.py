"""What the servers of the tests serve: `uvicorn serving:app`."""

import gluepy
import gluepy.asgi

app = gluepy.asgi.app(gluepy.Runtime(concurrency=4))
