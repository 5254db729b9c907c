"""The pure core: graph, events, state, scheduler. No IO, no clock, no randomness, nothing async."""
