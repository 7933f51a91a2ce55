"""Analyses of trained models: arrays first, plots second.

`attend.collect` runs a model and returns its attention maps. `rollout`,
`distance` and `similarity` analyze the maps; `posemb` and `filters` analyze
parameters. These modules have functions that compute arrays, and `plot_...`
functions that write a PNG. Only the latter import matplotlib.
"""
