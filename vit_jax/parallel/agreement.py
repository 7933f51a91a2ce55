"""Compares what the processes of a job are about to do.

Processes that were started with different settings, files or versions would
train on without an error, and the result would belong to none of them. So they
compare what they have before the first step and after a restore.
"""

from collections.abc import Iterator, Mapping, Sequence
import hashlib
import json
import pathlib
from typing import Any

import jax

import vit_jax
from vit_jax.parallel.processes import (
  broadcast_from_first,
  current_job,
  gather,
)

# Seconds until all processes must take part in a comparison.
_TIMEOUT = 300.0
_MISSING = 'missing'
# Settings of JAX that change the numbers of a run.
_JAX_SETTINGS = (
  'jax_default_matmul_precision',
  'jax_default_prng_impl',
  'jax_enable_x64',
  'jax_threefry_partitionable',
)


class ProcessesDiffer(ValueError):
  """Processes of one job have different settings, data or versions."""


def require_agreement(facts: Mapping[str, Any], moment: str) -> None:
  """Raises in every process if one of them differs from process 0.

  Args:
    facts: plain JSON values, nested as they like.
    moment: when they are compared, for the message.

  Raises:
    ProcessesDiffer: names the processes and for each the first difference.
    TimeoutError: names the processes that did not come to the comparison.
  """
  job = current_job()
  if job is None:
    return
  own = dict(_flatten(json.loads(json.dumps(facts, default=str))))
  first = broadcast_from_first(own, _TIMEOUT)
  differences = gather(_first_difference(own, first), _TIMEOUT)
  differing = [i for i, text in enumerate(differences) if text]
  if differing:
    raise ProcessesDiffer(
      f'the processes of this job differ {moment}: '
      + '; '.join(f'{job.name(i)}: {differences[i]}' for i in differing[:4])
      + ('; ...' if len(differing) > 4 else '')
      + '. Start all of them with the same command, code, packages and data'
    )


def code_fingerprint() -> str:
  """A hash of the source files of vit_jax."""
  root = pathlib.Path(vit_jax.__file__).parent
  digest = hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    digest.update(str(path.relative_to(root)).encode() + b'\0')
    digest.update(path.read_bytes() + b'\0')
  return digest.hexdigest()[:16]


def jax_settings() -> dict[str, str]:
  """The settings of JAX that change the numbers of a run."""
  return {name: str(getattr(jax.config, name, None)) for name in _JAX_SETTINGS}


def _first_difference(own: dict[str, Any], first: dict[str, Any]) -> str:
  """The first fact that differs from that of process 0; '' if none does."""
  for key in [*first, *(key for key in own if key not in first)]:
    here, there = own.get(key, _MISSING), first.get(key, _MISSING)
    if here != there:
      return f'{key} is {_short(here)}, in process 0 {_short(there)}'
  return ''


def _short(value: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value)
  return text if len(text) <= 100 else f'{text[:97]}...'


def _flatten(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
  """('a.b[2]', value) of nested dicts and lists, in their order."""
  if isinstance(value, Mapping) and value:
    for key, item in value.items():
      yield from _flatten(item, f'{name}.{key}' if name else str(key))
  elif isinstance(value, Sequence) and not isinstance(value, str) and value:
    for i, item in enumerate(value):
      yield from _flatten(item, f'{name}[{i}]')
  else:
    yield name, value
