"""The other commands of `edge-opd`."""
