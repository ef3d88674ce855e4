"""What every layer stands on: errors, files, settings of the machine, seeds, progress, the frame of a stage."""
