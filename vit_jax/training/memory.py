"""The memory that a compiled program needs."""

from typing import Any


def peak_bytes(memory: Any) -> int:
  """Bytes that a program needs at most on each device.

  Args:
    memory: what `memory_analysis` of a compiled program returned.
  """
  return int(
    getattr(memory, 'peak_memory_in_bytes', 0)
    or memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )
