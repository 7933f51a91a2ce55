"""Reads thousands of damaged files, and prints what became of each.

python -m tests.faults.mutate --inputs 5000 --seed 1

Each file is read by the package's own reader, in a process that is forked for
it. It must be read as before or refused by an error that says why. Where the
contents have a checksum, other contents are a fault; elsewhere they are what
the file now says, and are counted.
"""

import argparse
from collections import Counter
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time

from tests.faults import seeds
from tests.faults.mutations import mutate

SECONDS = 20.0
MEGABYTES = 2048
OUTCOMES = (
  *('clear error', 'read equal', 'read different'),
  *('unclear error', 'crash', 'hang', 'memory', 'code run'),
)
FAULTS = OUTCOMES[3:]
# Events of Python that mean that a file has made it run something.
_RUNS = ('os.system', 'os.exec', 'os.posix_spawn', 'subprocess.Popen')
_CODE_RUN = 77


def read_in_a_process(
  reader: seeds.Reader, path: pathlib.Path, folder: pathlib.Path
) -> tuple[str, str]:
  """What became of reading a path: an outcome, and the text or the error."""
  answer = folder / 'answer.json'
  answer.unlink(missing_ok=True)
  sys.stdout.flush()
  start = time.monotonic()
  before = _megabytes(os.getpid())
  pid = os.fork()
  if not pid:
    _read(reader, path, answer)
  peak = 0
  while not (ended := os.wait4(pid, os.WNOHANG))[0]:
    peak = max(peak, _megabytes(pid) - before)
    late = time.monotonic() - start > SECONDS and _seconds(pid) > SECONDS / 4
    # On a busy machine a process may have had no time to compute.
    if late or time.monotonic() - start > 30 * SECONDS or peak > MEGABYTES:
      os.kill(pid, signal.SIGKILL)
      os.waitpid(pid, 0)
      return ('memory' if peak > MEGABYTES else 'hang'), f'{peak} MB'
    time.sleep(0.01)
  code = os.waitstatus_to_exitcode(ended[1])
  if code == _CODE_RUN:
    return 'code run', ''
  if code or not answer.exists():
    return 'crash', f'exit code {code}'
  outcome, text = json.loads(answer.read_text())
  return outcome, text


def _megabytes(pid: int) -> int:
  try:
    pages = int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1])
  except (OSError, IndexError, ValueError):  # the process has ended
    return 0
  return pages * resource.getpagesize() // 2**20


def _seconds(pid: int) -> float:
  """CPU seconds of a process; those that a blocked one would have had, too."""
  try:
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1]
  except OSError:
    return 0.0
  state, *rest = fields.split()
  ticks = sum(int(x) for x in rest[10:12])
  blocked = SECONDS if state in 'SD' else 0.0
  return ticks / os.sysconf('SC_CLK_TCK') + blocked


def _read(
  reader: seeds.Reader, path: pathlib.Path, answer: pathlib.Path
) -> None:
  """Reads a path in the forked process, and ends it."""
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 1)
  os.dup2(null, 2)

  def watch(event, _):
    if event in _RUNS:
      os._exit(_CODE_RUN)

  sys.addaudithook(watch)
  try:
    result = 'read', reader.read(path)
  except (ValueError, OSError) as e:
    clear = 0 < len(str(e)) < 4000 and 'Traceback' not in str(e)
    result = 'clear error' if clear else 'unclear error', str(e)[:200]
  except BaseException as e:
    result = 'unclear error', f'{type(e).__name__}: {e}'[:200]
  answer.write_text(json.dumps(result))
  os._exit(0)


class Mutations:
  """Damaged inputs of all readers.

  Args:
    folder: for the seeds and the damaged files; it must be empty.
    seed: of the damages.
    readers: names of those to try; all by default.
  """

  def __init__(self, folder: pathlib.Path, seed: int, readers: list[str]):
    self._seeds, self._work = folder / 'seeds', folder / 'work'
    self._seeds.mkdir()
    self._seed = seed
    self._readers = [
      r for r in seeds.READERS if not readers or r.name in readers
    ]
    self.counts = {r.name: Counter() for r in self._readers}
    self.faults: list[str] = []
    self._make_seeds()
    self._expected = {r.name: self._sound(r) for r in self._readers}

  def _make_seeds(self) -> None:
    """In a process of its own, because forked ones must not share JAX's."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
      code = 1
      try:
        os.chdir(self._seeds)
        seeds.make_seeds(self._seeds)
        code = 0
      finally:
        sys.stderr.flush()
        os._exit(code)
    if os.waitpid(pid, 0)[1]:
      raise RuntimeError('the sound files could not be made')

  def _copy(self, reader: seeds.Reader) -> pathlib.Path:
    """A copy of a reader's seed, with what lies beside it."""
    shutil.rmtree(self._work, ignore_errors=True)
    top = reader.path.split('/')[0]
    source = self._seeds / top
    self._work.mkdir()
    if source.is_dir() and top != 'images':
      shutil.copytree(source, self._work / top)
    else:
      (self._work / reader.path).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(self._seeds / reader.path, self._work / reader.path)
    recipe = self._seeds / 'run' / 'recipe.json'
    if top == 'run' and recipe.exists():
      shutil.copy(recipe, self._work / 'run' / 'recipe.json')
    return self._work / reader.path

  def _sound(self, reader: seeds.Reader) -> str:
    outcome, text = read_in_a_process(reader, self._copy(reader), self._seeds)
    if outcome == 'read':
      return text
    if reader.name in ('.msgpack', '.pth, hostile') and outcome in (
      'clear error'
    ):
      return ''
    raise RuntimeError(f'the sound {reader.name}: {outcome}: {text}')

  def run(self, inputs: int, minutes: float) -> None:
    """Damages and reads so many inputs, or until the time is over."""
    rng = random.Random(self._seed)
    weights = [reader.weight for reader in self._readers]
    deadline = time.monotonic() + 60 * minutes
    for number in range(inputs):
      if time.monotonic() > deadline:
        break
      (reader,) = rng.choices(self._readers, weights)
      self._one(reader, f'{self._seed}/{number}')

  def _one(self, reader: seeds.Reader, name: str) -> None:
    path = self._copy(reader)
    done = mutate(random.Random(f'{name} {reader.name}'), path)
    outcome, text = read_in_a_process(reader, path, self._seeds)
    if outcome == 'read':
      same = text == self._expected[reader.name]
      outcome = 'read equal' if same else 'read different'
    if (self._seeds / 'code_was_run').exists():
      outcome = 'code run'
    self.counts[reader.name][outcome] += 1
    silent = outcome == 'read different' and reader.checked
    if outcome in FAULTS or silent:
      self.faults.append(f'{name} {reader.name}: {done}: {outcome}: {text}')

  def lines(self) -> list[str]:
    """The table that is printed."""
    head = f'{"reader":<17}{"inputs":>7}' + ''.join(
      f'{x:>15}' for x in OUTCOMES
    )
    rows = [head]
    total: Counter = Counter()
    for reader in self._readers:
      counts = self.counts[reader.name]
      total += counts
      mark = ' *' if reader.checked else ''
      rows.append(_row(reader.name + mark, counts))
    return [
      *(*rows, _row('all', total)),
      '* with checksums: reading other contents is a fault',
      f'faults {len(self.faults)}',
      *(f'  {fault}' for fault in self.faults),
    ]


def _row(name: str, counts: Counter) -> str:
  return f'{name:<17}{sum(counts.values()):>7}' + ''.join(
    f'{counts[x]:>15}' for x in OUTCOMES
  )


def _import_readers() -> None:
  """Imports what the readers need once, before the forks."""
  import vit_jax.data.sources.opening
  import vit_jax.inference.export
  import vit_jax.training.writers
  import vit_jax.weights.formats
  import vit_jax.weights.steps  # noqa: F401


def main() -> int:
  """Prints the table; 1 if something happened that must not."""
  parser = argparse.ArgumentParser(prog='python -m tests.faults.mutate')
  parser.add_argument('--inputs', type=int, default=5000)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--minutes', type=float, default=600)
  parser.add_argument('--readers', default='', help='names, with semicolons')
  args = parser.parse_args()
  os.environ['JAX_PLATFORMS'] = 'cpu'
  _import_readers()
  with tempfile.TemporaryDirectory(prefix='vit_jax_mutate_') as name:
    work = Mutations(
      pathlib.Path(name), args.seed, [x for x in args.readers.split(';') if x]
    )
    work.run(args.inputs, args.minutes)
    print('\n'.join(work.lines()), flush=True)
    return 1 if work.faults else 0


if __name__ == '__main__':
  sys.exit(main())
