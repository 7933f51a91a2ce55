"""The chips that a recipe can be compiled for."""

import re

# Per device of JAX (v2 and v3: a core, tpu7x: a chiplet, else a chip): clock
# in GHz, usable memory in GiB (from the compiler's own error), and all-reduce
# bandwidth in GB/s (published per pod, Cloud TPU documentation, divided by the
# devices). The peak FLOP/s are in `flops.PEAK_TFLOPS`.
CHIPS = {
  'v2': dict(clock=0.70, memory=7.48, wire=117),
  'v3': dict(clock=0.94, memory=15.48, wire=166),
  'v4': dict(clock=1.05, memory=30.75, wire=268, chip_config_name='megacore'),
  'v5e': dict(clock=1.50, memory=15.75, wire=200),
  'v5p': dict(clock=1.75, memory=95.74, wire=None, chip_config_name='megacore'),
  'v6e': dict(clock=1.75, memory=31.25, wire=400),
  'tpu7x': dict(clock=1.90, memory=94.75, wire=None),
}
# What the clouds call a slice by: cores.
CORES = {
  '8': '2x2',
  '32': '4x4',
  '128': '8x8',
  '256': '8x16',
  '512': '16x16',
  '1024': '16x32x1',
  '2048': '32x32',
}
# Training examples by number of classes, for data that is not here.
EXAMPLES = {
  10: 50_000,
  100: 50_000,
  1_000: 1_281_167,
  18_291: 303_000_000,
  21_841: 14_197_122,
  21_843: 14_197_122,
}
PRESETS = ('data', 'zero', 'fsdp', 'fsdp_tensor')


def parse_topology(topology: str) -> tuple[str, str]:
  """('v3', '8x8') of 'v3:8x8' or 'v3-128'. ValueError says what is known."""
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
