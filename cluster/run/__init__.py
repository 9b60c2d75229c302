"""One run: start, loop, folder, end."""
