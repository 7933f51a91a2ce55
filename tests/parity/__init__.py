"""Compares this project with values recorded from official implementations.

`python -m tests.parity FILES...`: for each .npz it builds what the file's
`meta` describes, loads the file's parameters, compares every output, and
prints one line: name, kind, max |difference|, tolerance, ok or FAIL. Exit 1 if
any file fails or none was checked. See `harness.py` for how a kind is added.
"""
