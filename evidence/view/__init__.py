"""Reports over finished runs and heat maps of their tokens: self-contained pages, from files alone."""
