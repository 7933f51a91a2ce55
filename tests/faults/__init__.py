"""Injures real training processes, and checks that nothing is lost.

python -m tests.faults --minutes 60 --seed 1
"""
