"""Small real runs whose processes are killed and stopped at random moments (`make chaos`)."""
