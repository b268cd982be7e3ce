"""Beyond one process: Ray workers, torch.distributed training, and what a run will take."""
