"""Views of stored events: live subscriptions, and the sinks that consume them."""

from gluepy.sinks.port import Consumer, Sink

__all__ = ["Consumer", "Sink"]
