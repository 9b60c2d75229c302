"""Who runs where: engines, ranks and the two services."""
