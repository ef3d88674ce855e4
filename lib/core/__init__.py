"""The training core: loop, schedule, optimisers, checkpoints, processes, progress. It knows no method by name."""
