"""The page of a run: one file without a server, live while the run lasts and whole afterwards."""
