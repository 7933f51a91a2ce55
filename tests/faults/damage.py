"""What disks and people do to a workdir between two runs."""

import json
import pathlib
import random

from vit_jax.parallel import workdir_lock


def draw(rng: random.Random, workdir: pathlib.Path) -> str:
  """Damages one thing of a workdir; the name of the damage, or ''.

  Of the steps only the two newest are damaged, and one only if there is an
  older one, which stays as it is.
  """
  kind = rng.choice(sorted(KINDS))
  return kind if KINDS[kind](rng, workdir) else ''


def _steps(workdir: pathlib.Path) -> list[pathlib.Path]:
  folder = workdir / 'checkpoints'
  steps = [p for p in folder.glob('*') if p.name.isdecimal() and p.is_dir()]
  return sorted(steps, key=lambda p: int(p.name))


def _file_of_newest(rng, workdir) -> pathlib.Path | None:
  steps = _steps(workdir)
  if len(steps) < 2:
    return None
  files = sorted(p for p in steps[-1].rglob('*') if p.is_file())
  return rng.choice(files) if files else None


def _two_steps(rng, workdir) -> bool:
  """Whether the two newest steps could be damaged, each in its own way."""
  steps = _steps(workdir)
  if len(steps) < 3:
    return False
  for step in steps[-2:]:
    files = sorted(p for p in step.rglob('*') if p.is_file())
    if not files:
      return False
    # The arrays, whose loss cannot be repaired.
    largest = max(files, key=lambda p: p.stat().st_size)
    rng.choice((_tear, _lose))(rng, largest)
  return True


def _tear(rng, path: pathlib.Path | None) -> bool:
  if path is None or not path.exists() or not path.stat().st_size:
    return False
  data = path.read_bytes()
  path.write_bytes(data[: rng.randrange(len(data))])
  return True


def _flip(rng, path: pathlib.Path | None) -> bool:
  if path is None or not path.exists() or not path.stat().st_size:
    return False
  data = bytearray(path.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(data)
  return True


def _lose(rng, path: pathlib.Path | None) -> bool:
  if path is None:
    return False
  path.unlink()
  return True


def _bad_line(rng, workdir) -> bool:
  """At the end, as a killed run leaves one; its text is one that is no line."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return False
  line = rng.choice((b'3\n', b'null\n', b'\xff\xfe\n', b'{"step": 3, "lo'))
  path.write_bytes(path.read_bytes() + line)
  return True


def _lock(rng, workdir) -> bool:
  """The lock of a run of this machine that is gone, edited by hand."""
  path = workdir / 'lock.json'
  if not workdir.is_dir() or path.exists():
    return False
  machine = workdir_lock._machine()
  pid = rng.choice((0, -1, 10**9, 'x', None))
  path.write_text(json.dumps({'machine': machine, 'pid': pid}))
  return True


def _stray(rng, workdir) -> bool:
  folder = workdir / 'checkpoints'
  if not folder.is_dir():
    return False
  name = rng.choice(('99', '\u00b2', '007', '5.orbax-checkpoint-tmp', 'x'))
  if (folder / name).exists():
    return False
  if rng.random() < 0.5:
    (folder / name).mkdir()
  else:
    (folder / name).write_text('')
  return name != '99' or (folder / name).is_file()


KINDS = {
  'torn file of a step': lambda r, w: _tear(r, _file_of_newest(r, w)),
  'flipped bit in a step': lambda r, w: _flip(r, _file_of_newest(r, w)),
  'lost file of a step': lambda r, w: _lose(r, _file_of_newest(r, w)),
  'two damaged steps': _two_steps,
  'torn config.json': lambda r, w: _tear(r, w / 'config.json'),
  'torn summary.json': lambda r, w: _tear(r, w / 'summary.json'),
  'bad line of metrics.jsonl': _bad_line,
  'stray in checkpoints': _stray,
  'lock of a run that is gone': _lock,
}
