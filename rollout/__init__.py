"""The rollout service: tasks, chat rendering, guided sampling, teacher scoring, probes."""
