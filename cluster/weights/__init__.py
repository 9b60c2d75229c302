"""Both ends of the weight hand-off."""
