"""A trained network on disk: its configuration, recipes and files, and how it is loaded to be evaluated; nothing is trained."""
