"""The only room that knows Ray: configuration, placement, actors, weight hand-off, the loop, the command line."""
