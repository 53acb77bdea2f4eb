"""Several processes for the data plane: worker processes that serve requests, and the one that owns everything else."""
