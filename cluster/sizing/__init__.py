"""What a run needs of its machines, on paper: bytes and seconds by formula, each checked against what was measured."""
