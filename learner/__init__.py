"""The learner service: shards in, a DeepSpeed ZeRO step, weights out. Blind to the algorithm's reasons."""
