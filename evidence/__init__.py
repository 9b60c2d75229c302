"""What one token of a rollout is worth: evidence, masks, diagnostics, and the shards that carry them.

Needs numpy and pyarrow only, and in view/ jinja2, so a shard opens on a laptop.
"""
