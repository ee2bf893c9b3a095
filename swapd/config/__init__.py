"""Text in, values out: config.yaml to a catalog, and the models that are there to config.yaml."""
