"""The published matrix as tables and pictures: from runs' records and recipes, without running anything."""
