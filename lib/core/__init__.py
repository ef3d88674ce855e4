"""The training core: loop, schedule, optimizers, checkpoints, processes, progress. It knows no method by name."""
