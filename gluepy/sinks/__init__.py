"""Views of stored events: live subscriptions, and the sinks that consume them."""
