"""How one parity file is checked: kinds, comparisons, the printed line.

A checker is a function `check(case) -> None` registered for a kind with
`@kind('vit_jax.ViT')`. It builds what `case.meta` describes and calls
`case.compare(output_key, value)` for every output it can produce. Outputs that
no call compared are printed as such (the project's tests demand that none is
left on the fixtures), so nothing is skipped silently.
"""

from collections.abc import Callable
import dataclasses
import json
import pathlib

import numpy as np

CHECKERS: dict[str, Callable] = {}


def kind(*names: str):
  """Registers a checker for config kinds or for prefixes of case names."""

  def add(fn):
    for name in names:
      CHECKERS[name] = fn
    return fn

  return add


@dataclasses.dataclass
class Case:
  """One parity file: meta, inputs, parameters, recorded outputs, results."""

  path: pathlib.Path
  meta: dict
  inputs: dict[str, np.ndarray]
  params: dict[str, np.ndarray]
  outputs: dict[str, np.ndarray]
  kind: str = ''
  worst: float = 0.0  # largest difference / tolerance
  difference: float = 0.0  # the difference of that worst output
  tolerance: float = 0.0
  worst_key: str = ''
  compared: set[str] = dataclasses.field(default_factory=set)
  # Settings of a recipe, sizes apart, that a recorded run has otherwise.
  changed: list[str] = dataclasses.field(default_factory=list)

  @property
  def config(self) -> dict:
    return self.meta['config']

  def compare(self, key: str, value, tolerance: float | None = None):
    """Compares `value` with recorded output `key`.

    Without `tolerance`, the file's own: `logits_atol` for logits, 1e-4 of the
    largest reference entry for other outputs of model files.
    """
    want = self.outputs[key]
    value = np.asarray(value)
    if value.shape != want.shape:
      raise ValueError(f'{key}: shape {value.shape}, recorded {want.shape}')
    difference = float(
      np.max(
        np.abs(value.astype(np.float64) - want.astype(np.float64)), initial=0.0
      )
    )
    if not np.all(
      np.isfinite(value.astype(np.float64))
      == np.isfinite(want.astype(np.float64))
    ):
      difference = float('inf')
    if tolerance is None:
      if key.startswith('logits'):
        tolerance = self.meta['tolerance']['logits_atol']
      else:
        tolerance = 1e-4 * float(np.max(np.abs(want)))
    ratio = difference / tolerance if tolerance else float(difference > 0) * 1e9
    if not ratio < self.worst or not self.compared:
      self.worst, self.difference = ratio, difference
      self.tolerance, self.worst_key = tolerance, key
    self.compared.add(key)

  @property
  def left(self) -> list[str]:
    """Recorded outputs that were not compared."""
    return sorted(set(self.outputs) - self.compared)

  @property
  def ok(self) -> bool:
    return bool(self.compared) and self.worst <= 1.0


def load_case(path) -> Case:
  with np.load(path) as z:
    below = lambda prefix: {
      k[len(prefix) :]: z[k] for k in z.files if k.startswith(prefix)
    }
    meta = json.loads(str(z['meta']))
    case = Case(
      pathlib.Path(path), meta, below('in/'), below('param/'), below('out/')
    )
  config = meta.get('config')
  case.kind = config.get('kind', '') if isinstance(config, dict) else ''
  return case


def find_checker(case: Case):
  """By config kind, else by the longest registered prefix of the case name."""
  if case.kind in CHECKERS:
    return CHECKERS[case.kind]
  name = case.meta.get('case', case.path.stem)
  stems = [k for k in CHECKERS if name.startswith(k)]
  if stems:
    case.kind = max(stems, key=len)
    return CHECKERS[case.kind]
  return None


def check_file(path) -> tuple[str, bool]:
  """Returns the line to print for one file and whether it passed."""
  path = pathlib.Path(path)
  try:
    case = load_case(path)
  except Exception as e:  # any unreadable file is a failed line, not a crash
    return f'{path.stem:32s} {"?":20s} unreadable: {e}  FAIL', False
  checker = find_checker(case)
  if checker is None:
    return f'{path.stem:32s} {case.kind or "?":20s} no checker  FAIL', False
  try:
    checker(case)
  except Exception as e:
    return (
      f'{path.stem:32s} {case.kind:20s} {type(e).__name__}: {e}  FAIL',
      False,
    )
  left = case.left
  ok = case.ok
  line = (
    f'{path.stem:32s} {case.kind:20s} max|diff| {case.difference:.2e} '
    f'tol {case.tolerance:.2e} ({case.worst_key}; '
    f'{len(case.compared)} outputs)  {"ok" if ok else "FAIL"}'
  )
  if left:
    line += f'  not compared: {", ".join(left)}'
  return line, ok
