"""The console scripts: the only room that imports hydra and omegaconf."""
