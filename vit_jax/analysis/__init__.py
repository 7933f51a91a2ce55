"""Analyses of trained models: arrays first, plots second.

`attend.collect` runs a model and returns its attention maps. `rollout`,
`distance` and `similarity` compute numbers from the maps; `posemb` and
`filters` analyze parameters. Every module has functions of arrays, and one or
two `plot_...` functions that write a PNG; only these import matplotlib.
"""
