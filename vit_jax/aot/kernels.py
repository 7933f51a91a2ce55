"""Prices the Pallas kernels of a program, which the compiler does not.

The compiler gives estimated cycles for its own instructions and none for a
Pallas kernel. But it schedules a kernel as it schedules everything else, and
`libtpu` can write the schedule to a file. A kernel is therefore compiled once
more, alone, and takes

  the instruction bundles of its schedule x the steps of its grid

cycles, as one bundle is issued per cycle. On chips that are two cores in one
device (v4, v5p) the steps are split over both. A kernel that moves more bytes
than it computes takes its bytes divided by the memory rate of a copy instead,
also as the compiler estimates it. Both leave out the first fetch and the last
write, which nothing hides.

The schedule of a kernel with a loop inside says nothing about the trip count.
Such a kernel is priced by its bytes, or by the operations that its author
declares (`pl.CostEstimate`) at the peak rate of the chip, which is too little.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import glob
import json
import math
import os
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile
from typing import Any

import jax

from vit_jax.aot.chips import CHIPS, describe_topology
from vit_jax.models import flops

_DTYPES = {'bfloat16': 'bf16', 'float16': 'f16', 'bool': 'pred'}


def _type(aval: Any) -> str:
  """A type as compiled programs write it, such as 'bf16[8,128]'."""
  name = str(aval.dtype)
  name = _DTYPES.get(name, re.sub('[a-z]+', lambda m: m[0][0], name))
  return f'{name}[{",".join(map(str, aval.shape))}]'


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A call of a Pallas kernel on one device.

  Attributes:
    name: of the kernel.
    operands, results: types, such as 'bf16[32,12,64,197]'.
    steps: number of steps of its grid.
    flops: operations that its `pl.CostEstimate` declares, 0 without one.
    loops: whether it has a loop inside.
    program: the call as a serialized `jax.export.Exported`.
  """

  name: str
  operands: tuple[str, ...]
  results: tuple[str, ...]
  steps: int
  flops: float
  loops: bool
  program: bytes

  @property
  def bytes(self) -> int:
    """Bytes that it reads and writes, in tiles as they are stored."""
    return sum(_stored_bytes(t) for t in (*self.operands, *self.results))


def key(operands: Sequence[str], results: Sequence[str]) -> str:
  """What identifies a kernel in a compiled program: the types of its arrays."""
  return f'{",".join(operands)}->{",".join(results)}'


def _stored_bytes(type_text: str) -> int:
  """Bytes of an array whose last two axes are padded to tiles (8 x 128)."""
  match = re.fullmatch(r'([a-z]+)(\d*)\[([\d,]*)\]', type_text)
  if match is None:
    return 0
  size = max(1, int(match[2] or 8) // 8)
  dims = [int(d) for d in match[3].split(',') if d]
  tile = (max(1, 32 // (8 * size)) * 8, 128)[-len(dims) :] if dims else ()
  for i, n in enumerate(reversed(tile), start=1):
    # A single row of 32-bit numbers is not padded to eight.
    if i == 1 or dims[-i] > 1:
      dims[-i] = math.ceil(dims[-i] / n) * n
  return size * math.prod(dims)


def kernels(jaxpr: Any) -> list[Kernel]:
  """The different Pallas kernels that a traced program calls.

  Args:
    jaxpr: of the program, traced for TPUs.
  """
  by_key: dict[str, Kernel] = {}
  for eqn in _calls(jaxpr):
    operands = tuple(_type(v.aval) for v in eqn.invars)
    results = tuple(_type(v.aval) for v in eqn.outvars)
    name = key(operands, results)
    if name not in by_key:
      by_key[name] = _kernel(eqn, operands, results)
  return list(by_key.values())


def _calls(jaxpr: Any) -> Iterator[Any]:
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'pallas_call':
      yield eqn
    else:
      for inner in flops.inner_jaxprs(eqn):
        yield from _calls(inner)


def _kernel(
  eqn: Any, operands: tuple[str, ...], results: tuple[str, ...]
) -> Kernel:
  body, cost = eqn.params['jaxpr'], eqn.params['cost_estimate']
  steps = math.prod(eqn.params['grid_mapping'].grid)
  call = jax.jit(lambda *args: eqn.primitive.bind(*args, **eqn.params))
  program = jax.export.export(
    call,
    platforms=('tpu',),
    disabled_checks=[
      jax.export.DisabledSafetyCheck.custom_call('tpu_custom_call')
    ],
  )(*(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars))
  return Kernel(
    name=eqn.params['name'] or 'kernel',
    operands=operands,
    results=results,
    steps=steps,
    flops=cost.flops if cost else 0,
    loops=any(e.primitive.name in ('while', 'scan') for e in _equations(body)),
    program=bytes(program.serialize()),
  )


def _equations(jaxpr: Any) -> Iterator[Any]:
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in flops.inner_jaxprs(eqn):
      yield from _equations(inner)


def prices(
  called: Sequence[Kernel], chip: str, grid: str
) -> dict[str, dict[str, Any]]:
  """Estimated cycles of kernels.

  Args:
    called: the kernels.
    chip, grid: of the topology, as in `chips.parse_topology`.

  Returns:
    For the `key` of each kernel: 'name', 'cycles' of one call, 'by' (whichever
    takes longest of 'schedule', 'bytes' and 'operations'), 'bundles' of a step,
    and 'steps'.
  """
  if not called:
    return {}
  bundles = _bundles(called, chip, grid)
  facts = CHIPS[chip]
  cores = 2 if facts.config_name == 'megacore' else 1
  peak = flops.peak_flops(describe_topology(chip, grid).devices[0])
  priced = {}
  for kernel, count in zip(called, bundles, strict=True):
    cycles = {'bytes': kernel.bytes / (facts.copy_rate * 1e9)}
    if count and not kernel.loops:
      steps = math.ceil(kernel.steps / cores)
      cycles['schedule'] = count * steps / (facts.clock * 1e9)
    elif peak:
      cycles['operations'] = kernel.flops / peak
    by = max(cycles, key=lambda x: cycles[x])
    priced[key(kernel.operands, kernel.results)] = dict(
      name=kernel.name,
      cycles=round(cycles[by] * facts.clock * 1e9),
      by=by,
      bundles=count,
      steps=kernel.steps,
    )
  return priced


def _bundles(
  called: Sequence[Kernel], chip: str, grid: str
) -> list[int | None]:
  """Bundles of the schedule of each kernel; None where there is no schedule.

  The compiler reads where to write schedules when it starts, and would write
  those of the whole program too, which takes minutes. So it runs again.
  """
  with tempfile.TemporaryDirectory() as folder:
    question = pathlib.Path(folder, 'kernels.pickle')
    programs = [k.program for k in called]
    question.write_bytes(pickle.dumps((chip, grid, programs)))
    answer = pathlib.Path(folder, 'bundles.json')
    options = f'--xla_jf_dump_to={folder}/dump --xla_jf_dump_llo_text=true'
    done = subprocess.run(
      [sys.executable, '-m', 'vit_jax.aot.kernels', str(question), str(answer)],
      env={**os.environ, 'LIBTPU_INIT_ARGS': options},
      capture_output=True,
      text=True,
      timeout=600,
    )
    if not answer.exists():
      raise RuntimeError(
        'the compiler ended without a schedule of the kernels '
        f'(exit code {done.returncode}): {done.stderr[-1000:]}'
      )
    return json.loads(answer.read_text())


def _schedule(programs: Sequence[bytes], chip: str, grid: str, dump: str):
  """Compiles kernels one by one and reads the schedules that are written."""
  device = describe_topology(chip, grid).devices[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  counts: list[int | None] = []
  for program in programs:
    call = jax.export.deserialize(bytearray(program))
    args = [
      jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
      for x in call.in_avals
    ]
    before = set(glob.glob(f'{dump}/*'))
    jax.jit(call.call).lower(*args).compile()
    count = None
    for path in set(glob.glob(f'{dump}/*analysis_final_bundles.txt')) - before:
      text = pathlib.Path(path).read_text()
      total = re.search(r'total scheduled bundles:\s*(\d+)', text)
      # The files with TLP in their names are of the program around a kernel.
      if 'TLP' not in path and 'tpu_custom_call' in text and total:
        count = int(total[1])
    counts.append(count)
  return counts


def main(question: str, answer: str) -> None:
  """Answers `_bundles`, in the process that it starts."""
  chip, grid, programs = pickle.loads(pathlib.Path(question).read_bytes())
  dump = str(pathlib.Path(question).with_name('dump'))
  pathlib.Path(answer).write_text(
    json.dumps(_schedule(programs, chip, grid, dump))
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
