"""The training loop, its state, augmentation and process groups. Recipes are in `sanbench.runs`."""
