"""Figures of a run, as files and lines."""
