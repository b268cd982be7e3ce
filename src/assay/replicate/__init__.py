"""Published findings, tried again: `run.replicate(lab, name)`; one file each in `findings/`."""
