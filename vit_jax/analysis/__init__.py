"""What a trained model looks at: arrays first, plots second.

`attend.collect` runs a model and returns its attention maps; `rollout`,
`distance` and `similarity` turn maps into numbers; `posemb` and `filters` look
at parameters. Every module has functions of arrays and one or two `plot_...`
functions that write a PNG; plotting needs matplotlib (imported only there).
"""
