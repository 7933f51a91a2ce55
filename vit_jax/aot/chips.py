"""The TPU chips for which a recipe can be compiled, and their slices.

`python -m vit_jax.aot.chips v5e-16` prints what Google Cloud calls a slice, and
without a name all slices: this is launch/accelerators.txt, from which the
launch scripts know them.
"""

import dataclasses
import math
import re
import sys
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device of JAX: a core of v2 and v3, a chiplet of tpu7x, else a chip.

  The peak FLOP/s are in `models.flops.PEAK_TFLOPS`.

  Attributes:
    clock: clock rate in GHz.
    memory: usable memory in GiB, from the compiler's out-of-memory message.
    bandwidth: bandwidth of an all-reduce in GB/s; `CHIPS` has its sources.
    copy_rate: bytes that are read and written in a large copy in GB/s, by the
      compiler's own estimate, which is 65 to 94 % of the nominal rate.
    config_name: libtpu's name for the configuration of the chip, if it has
      several.
    devices: devices of JAX in a chip.
  """

  clock: float
  memory: float
  bandwidth: float
  copy_rate: float
  config_name: str | None = None
  devices: int = 1

  def wire_seconds(self, kind: str, size: int) -> float:
    """The time of a collective on the wires.

    The bandwidth is that of an all-reduce, which sends every byte twice: to be
    summed, and to distribute the sum. Other collectives send every byte once.

    Args:
      kind: such as 'all-gather'.
      size: bytes of the whole array that is reduced, gathered or moved.
    """
    return size * (1 if kind == 'all-reduce' else 0.5) / (self.bandwidth * 1e9)


# The bandwidths are from the page of each chip in the Cloud TPU documentation
# (docs.cloud.google.com/tpu/docs/v3, and so on). For v2, v3, v4, v5e and v6e
# they are the all-reduce bandwidth of a pod, divided by its devices: 120 TB/s
# of 1,024, 340 of 2,048, 1,100 of 4,096, 51.2 of 256 and 102.4 of 256. For v5p
# and tpu7x no such number is given. There they are half of the bidirectional
# bandwidth of the links of a chip (1,200 GB/s for both), because the same half
# is the given number for v5e and v6e; the two devices of a tpu7x share it.
CHIPS = {
  'v2': Chip(clock=0.70, memory=7.48, bandwidth=117, copy_rate=312, devices=2),
  'v3': Chip(clock=0.94, memory=15.48, bandwidth=166, copy_rate=422, devices=2),
  'v4': Chip(1.05, 30.75, bandwidth=268, copy_rate=943, config_name='megacore'),
  'v5e': Chip(clock=1.50, memory=15.75, bandwidth=200, copy_rate=657),
  'v5p': Chip(
    1.75, 95.74, bandwidth=600, copy_rate=1969, config_name='megacore'
  ),
  'v6e': Chip(clock=1.75, memory=31.25, bandwidth=400, copy_rate=1324),
  'tpu7x': Chip(1.90, 94.75, bandwidth=300, copy_rate=2405, devices=2),
}
_2D = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_3D = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8'),
  *('8x8x16', '8x16x16'),
)


@dataclasses.dataclass(frozen=True)
class Family:
  """The slices of a chip that Google Cloud offers.

  Attributes:
    prefix: what stands before the number in the name of a slice.
    unit: what the number counts for each chip: 2 cores or 1 chip.
    grids: of the slices, in chips.
    runtime: the software version of a TPU VM.
    gke: the label of the nodes of GKE; '' if GKE does not have it.
  """

  prefix: str
  unit: int
  grids: tuple[str, ...]
  runtime: str
  gke: str = ''


FAMILIES = {
  'v2': Family(
    'v2', 2, ('2x2', '4x4', '8x8', '8x16', '16x16'), 'tpu-ubuntu2204-base'
  ),
  'v3': Family(
    'v3',
    2,
    ('2x2', '4x4', '8x8', '8x16', '16x16', '16x32x1', '32x32'),
    'tpu-ubuntu2204-base',
  ),
  'v4': Family('v4', 2, _3D, 'tpu-ubuntu2204-base', 'tpu-v4-podslice'),
  'v5e': Family(
    'v5litepod', 1, _2D, 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice'
  ),
  'v5p': Family(
    'v5p',
    2,
    (*_3D, '8x8x12', '8x12x16', '12x16x16', '16x16x16', '16x16x24'),
    'v2-alpha-tpuv5',
    'tpu-v5p-slice',
  ),
  'v6e': Family('v6e', 1, _2D, 'v2-alpha-tpuv6e', 'tpu-v6e-slice'),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice that Google Cloud offers.

  Attributes:
    chip: key of CHIPS.
    grid: of its chips.
  """

  chip: str
  grid: str

  @property
  def chips(self) -> int:
    return math.prod(map(int, self.grid.split('x')))

  @property
  def name(self) -> str:
    """Google Cloud's name, such as 'v5litepod-16'."""
    family = FAMILIES[self.chip]
    return f'{family.prefix}-{family.unit * self.chips}'

  @property
  def aliases(self) -> tuple[str, ...]:
    """All names that are understood."""
    number = self.name.rpartition('-')[2]
    names = (self.name, f'{self.chip}-{number}', f'{self.chip}:{self.grid}')
    return tuple(dict.fromkeys(names))

  def line(self) -> str:
    """Its line of launch/accelerators.txt."""
    family = FAMILIES[self.chip]
    # A v5e or v6e slice of up to 8 chips is one host.
    per_host = self.chips if self.chips <= 4 else 4
    if family.unit == 1 and self.chips == 8:
      per_host = 8
    return ' '.join(
      (
        self.name,
        ','.join(self.aliases),
        self.grid,
        str(self.chips),
        str(per_host),
        family.runtime,
        family.gke or '-',
      )
    )


SLICES = tuple(
  x
  for chip, family in FAMILIES.items()
  for x in sorted(
    (Slice(chip, grid) for grid in family.grids), key=lambda x: x.chips
  )
)
_BY_NAME = {alias: x for x in SLICES for alias in x.aliases}
# {number of classes: training examples of the known data set that has them},
# for recipes whose data is not on this machine.
EXAMPLES = {
  10: 50_000,
  100: 50_000,
  1_000: 1_281_167,
  18_291: 303_000_000,
  21_841: 14_197_122,
  21_843: 14_197_122,
}


def parse_topology(topology: str) -> tuple[str, str]:
  """Reads 'v3:8x8', 'v3-128' or 'v5litepod-64' as ('v3', '8x8').

  Raises:
    ValueError: an unknown chip, or another form.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+){1,2})', topology)
  if match and match[1] in CHIPS:
    return match[1], match[2]
  if topology in _BY_NAME:
    return _BY_NAME[topology].chip, _BY_NAME[topology].grid
  raise ValueError(
    f'topology {topology!r}: give CHIP:GRID with the grid in chips, such as '
    f'v3:8x8 (128 cores), v4:4x4x4, v5e:8x8; chips: {", ".join(CHIPS)}; or a '
    f'slice of Google Cloud: {_near(topology)}'
  )


def describe_topology(chip: str, grid: str) -> Any:
  """JAX's description of a slice that is not there; `.devices` are its devices.

  Args:
    chip, grid: as `parse_topology` returns them.
  """
  from jax.experimental import topologies

  options = {}
  if CHIPS[chip].config_name:
    options['chip_config_name'] = CHIPS[chip].config_name
  if grid in ('1x1', '1x1x1'):
    options['chips_per_host_bounds'] = [1, 1, 1]
  return topologies.get_topology_desc(
    platform='tpu', topology_name=f'{chip}:{grid}', **options
  )


def _near(name: str) -> str:
  """The names of the slices of the chip that a name begins with, or of all."""
  chip = next((c for c in FAMILIES if name.startswith(c)), '')
  if name.startswith('v5lite'):
    chip = 'v5e'
  slices = [x for x in SLICES if x.chip == chip] or SLICES
  return ', '.join(x.aliases[-2] for x in slices)


def table() -> str:
  """The contents of launch/accelerators.txt."""
  head = (
    '# By `python -m vit_jax.aot.chips`: name, all names, grid, chips, chips\n'
    '# of a host, runtime version of TPU VMs, node label of GKE.\n'
  )
  return head + ''.join(f'{x.line()}\n' for x in SLICES)


def main() -> int:
  """Prints the table, or the lines of the slices that are named."""
  if len(sys.argv) == 1:
    print(table(), end='')
    return 0
  for name in sys.argv[1:]:
    if name not in _BY_NAME:
      print(
        f'error: {name!r} is no slice of Google Cloud; known: {_near(name)}',
        file=sys.stderr,
      )
      return 1
    print(_BY_NAME[name].line())
  return 0


if __name__ == '__main__':
  sys.exit(main())
