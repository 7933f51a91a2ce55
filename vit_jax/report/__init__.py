"""Reports of runs: one HTML page that needs no network, and tables.

`runs` reads workdirs; `table` compares them; `charts` makes the curves;
`examined` applies a run's model to its test images; `explorer` collects the
attention that a reader can explore; `page` puts everything into one file.
"""
