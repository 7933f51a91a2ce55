"""The report of a compilation as text, with advice if it does not fit."""

from typing import Any

import jax.numpy as jnp

CALIBRATION = (
  'These are estimates of the compiler, not measurements. They are within '
  'about 10 % of the published time of an S/16 on v3-8; the published '
  'core-days of H/14 and L/16 on JFT are 2 to 3 times as many, see '
  'docs/tpu_estimates.md.'
)


def advice(report: dict[str, Any]) -> list[str]:
  """Changes to a recipe that does not fit; [] for one that fits."""
  if report['fits']:
    return []
  limit, tips = report['memory_limit'], []
  preset, state = report['preset'], report['state_bytes']
  mirrors = state / max(1, report['parameter_bytes'])
  if preset == 'data' and state > limit / 4:
    after = (report['parameters'] * 4 * mirrors) / min(32, report['devices'])
    tips.append(
      f'--config.mesh.preset=fsdp: the state takes {_gib(state)} of '
      f'{_gib(limit)} on every device; split over up to 32 devices about '
      f'{_gib(after)}'
    )
  elif preset == 'data':
    tips.append(
      '--config.mesh.preset=zero: splits the stored parameters and the '
      'optimizer state'
    )
  elif preset == 'zero':
    size = jnp.dtype(report['dtype']).itemsize
    tips.append(
      '--config.mesh.preset=fsdp: puts each parameter together where it is '
      f'used, and not all of them ({_gib(report["parameters"] * size)}) at the '
      'start of a step'
    )
  if report['remat'] == 'none':
    tips.append(
      '--config.model.remat=dots_no_batch, or full: recomputes '
      'activations in the backward pass'
    )
  elif report['remat'] != 'full':
    tips.append('--config.model.remat=full: keeps only the block inputs')
  if report['scan']:
    tips.append(
      '--config.model.scan=False: unrolled blocks need less memory '
      'than stacked ones (and more time to compile)'
    )
  if report['per_device_batch'] / report['accumulate'] > 1:
    tips.append(
      f'--config.optim.accumulate={2 * report["accumulate"]}: the '
      'same batch in smaller micro-batches'
    )
    tips.append(
      f'more devices than {report["devices"]}, or a smaller '
      f'--config.data.batch_size than {report["batch_size"]} '
      f'({report["per_device_batch"]:g} images a device)'
    )
  else:
    tips.append(f'more devices than {report["devices"]}')
  return tips


def _gib(size) -> str:
  return f'{size / 2**30:.2f} GiB'


def cost(report: dict[str, Any]) -> str:
  """The chip-hours of a whole recipe, and their price if it is known."""
  hours = report['chip_hours']
  text = f'{hours:,.0f} chip-hours on {report["chips"]} chips'
  price = report.get('price_per_chip_hour')
  if price is not None:
    text += f', at {price:g} each {price * hours:,.0f}'
  return f'{text}, without evaluation, input wait and restarts'


def describe(report: dict[str, Any]) -> str:
  """The report as text."""
  r, device = report, report['device']
  lines = [
    f'{r["config"] or r["model"]} on {r["topology"]}: {r["devices"]} '
    f'{device}s, mesh '
    + ' x '.join(f'{k} {v}' for k, v in r['mesh'].items())
    + f', preset {r["preset"]}',
    f'  {r["parameters"]:,} parameters, {r["dtype"]}, remat {r["remat"]}, '
    f'{"scanned" if r["scan"] else "unrolled"} blocks; global batch '
    f'{r["batch_size"]}, {r["per_device_batch"]:g} a {device}'
    + (f' in {r["accumulate"]} micro-batches' if r['accumulate'] > 1 else ''),
    f'  per {device}: parameters {_gib(r["parameter_bytes"])}, whole state '
    f'{_gib(r["state_bytes"])}'
    + (f', peak {_gib(r["peak_bytes"])}' if 'peak_bytes' in r else '')
    + f' of {_gib(r["memory_limit"])}'
    + (
      f' (eval {_gib(r["eval_peak_bytes"])})' if 'eval_peak_bytes' in r else ''
    ),
  ]
  for c in r.get('collectives', ()):
    lines.append(
      f'  {c["kind"]} over {c["axes"]}: {c["executions"]} x, '
      f'{c["bytes"] / 2**20:,.1f} MiB, the largest '
      f'{c["largest"] / 2**20:,.1f} MiB'
    )
  if 'step_seconds' in r:
    least, most = r['step_seconds_range']
    low, high = r['mfu_range']
    lines += [
      f'  estimated step {1e3 * r["step_seconds"]:.1f} ms: '
      f'{1e3 * least:.1f} of computation, and '
      f'{1e3 * (r["step_seconds"] - least):.1f} of the '
      f'{1e3 * r["wire_seconds"]:.1f} ms of collectives, which the schedule '
      f'does not hide; from {1e3 * least:.1f} ms if it hid all to '
      f'{1e3 * most:.1f} if it hid none',
      f'  estimated {r["images_per_second"]:,.0f} img/s, '
      f'{r["images_per_second_per_device"]:,.0f} a {device}; '
      f'{r["model_flops"]:.3g} model FLOPs a step, MFU {r["mfu"]:.3f} '
      f'({low:.3f} to {high:.3f})',
      f'  estimated whole recipe, {r["steps"]:,} steps: {r["days"]:.2f} '
      f'days, {r["device_days"]:,.0f} {device}-days',
    ]
    lines.append(f'  {cost(r)}')
    lines.append(
      '  ms by kind of layer: '
      + ', '.join(f'{k} {v:.1f}' for k, v in r['milliseconds_by_part'].items())
    )
  lines += [f'  {describe_kernel(k)}' for k in r.get('kernels', ())]
  lines.append(
    f'  compiled in {r["compile_seconds"]:.0f} s with libtpu '
    f'{r["libtpu"]}. {CALIBRATION}'
  )
  if not r['fits']:
    lines.append(
      'DOES NOT FIT: '
      + r.get(
        'error', f'peak {_gib(r["peak_bytes"])} of {_gib(r["memory_limit"])}'
      )
    )
    lines += [f'  try {tip}' for tip in r['advice']]
  return '\n'.join(lines)


def describe_kernel(k: dict[str, Any]) -> str:
  """A kernel and how its time is estimated, as text."""
  head = f'kernel {k["name"]}: {k["executions"]} x '
  ways = {
    'schedule': f'by its schedule of {k.get("bundles")} instructions '
    f'for each of {k.get("steps"):,} steps'
    if k.get('steps')
    else '',
    'bytes': 'by the bytes that it reads and writes',
    'operations': 'by the operations that it declares, at the peak rate',
  }
  if k['milliseconds'] is None:
    return head + 'unknown time, which is not in the step'
  return head + f'{k["milliseconds"]:.3f} ms, {ways[k["by"]]}'


def _row(r: dict) -> list[str]:
  return [
    r['topology'],
    str(r['devices']),
    r['preset'],
    r['remat'],
    'scan' if r['scan'] else 'unrolled',
    str(r['batch_size']),
    f'{r["state_bytes"] / 2**30:.2f}',
    f'{r["peak_bytes"] / 2**30:.2f}' if 'peak_bytes' in r else '?',
    *(
      [
        f'{1e3 * r["step_seconds"]:.1f}',
        f'{r["images_per_second_per_device"]:.0f}',
        f'{r["mfu"]:.3f}',
        f'{r["device_days"]:.0f}',
      ]
      if r['fits']
      else ['does not fit', '', '', '']
    ),
    f'{r["compile_seconds"]:.0f}',
  ]


def table(reports: list[dict[str, Any]]) -> str:
  """A Markdown table, one row per report."""
  head = [
    'topology',
    'devices',
    'preset',
    'remat',
    'blocks',
    'batch',
    'state GiB',
    'peak GiB',
    'step ms',
    'img/s/device',
    'MFU',
    'device-days',
    'compile s',
  ]
  rows = [head, ['---'] * len(head)] + [_row(r) for r in reports]
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)
