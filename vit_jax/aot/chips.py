"""The TPU chips for which a recipe can be compiled."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device of JAX: a core of v2 and v3, a chiplet of tpu7x, else a chip.

  The peak FLOP/s are in `models.flops.PEAK_TFLOPS`.

  Attributes:
    clock: clock rate in GHz.
    memory: usable memory in GiB, from the compiler's out-of-memory message.
    bandwidth: bandwidth of an all-reduce in GB/s: the number that the Cloud TPU
      documentation gives for a pod, divided by its devices. None if it gives
      none.
    config_name: libtpu's name for the configuration of the chip, if it has
      several.
  """

  clock: float
  memory: float
  bandwidth: float | None
  config_name: str | None = None


CHIPS = {
  'v2': Chip(clock=0.70, memory=7.48, bandwidth=117),
  'v3': Chip(clock=0.94, memory=15.48, bandwidth=166),
  'v4': Chip(clock=1.05, memory=30.75, bandwidth=268, config_name='megacore'),
  'v5e': Chip(clock=1.50, memory=15.75, bandwidth=200),
  'v5p': Chip(clock=1.75, memory=95.74, bandwidth=None, config_name='megacore'),
  'v6e': Chip(clock=1.75, memory=31.25, bandwidth=400),
  'tpu7x': Chip(clock=1.90, memory=94.75, bandwidth=None),
}
# Google Cloud names a v2 or v3 slice by its number of cores; the compiler needs
# the grid of its chips.
CORES = {
  '8': '2x2',
  '32': '4x4',
  '128': '8x8',
  '256': '8x16',
  '512': '16x16',
  '1024': '16x32x1',
  '2048': '32x32',
}
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
  """Reads 'v3:8x8' or 'v3-128' as ('v3', '8x8').

  Raises:
    ValueError: an unknown chip, or another form.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+){1,2})', topology)
  if match and match[1] in CHIPS:
    return match[1], match[2]
  match = re.fullmatch(r'(v[23])-(\d+)', topology)
  if match and match[2] in CORES:
    return match[1], CORES[match[2]]
  raise ValueError(
    f'topology {topology!r}: give CHIP:GRID with the grid in chips, such as '
    f'v3:8x8 (128 cores), v4:4x4x4, v5e:8x8; chips: {", ".join(CHIPS)}; or '
    f'v2-N, v3-N with N cores of {", ".join(CORES)}'
  )
