"""Heat maps of a step's tokens: self-contained pages, from a shard alone."""
