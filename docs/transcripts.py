"""Writes docs/transcripts.md: what the commands of the tutorials print.

    python docs/transcripts.py

Every command is typed in a shell, in the small form in which
`tests/test_pages.py` runs it, in a directory with the files of a reader. It
takes some minutes.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs/transcripts.md'
TUTORIALS = (
  'own_photos',
  'imagenet_val',
  'your_own_model',
  'tpu_slice',
  'paper_figures',
)
MOST_LINES = 24  # of the output of one command


def typed(line: str) -> str:
  """What the reader types for a command of a tutorial."""
  from tests import pages

  small = pages.small(line)
  return line if small.startswith(sys.executable) else small


def run(line: str, directory: pathlib.Path, variables: dict[str, str]) -> str:
  """What a command prints, on both of its outputs, and its exit code."""
  from tests import pages

  small = pages.small(line)
  if small.startswith('export '):
    for word in small.split()[1:]:
      name, _, value = word.partition('=')
      variables[name] = value
    return ''
  done = subprocess.run(
    ['bash', '-c', small],
    cwd=ROOT if 'launch/' in small else directory,
    env={**os.environ, **variables},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  lines = done.stdout.replace(f'{directory}/', '').splitlines()
  for path, shown in ((f'{ROOT}/', ''), (str(ROOT), 'vit_jax')):
    lines = [line.rstrip().replace(path, shown) for line in lines]
  if len(lines) > MOST_LINES:
    half = MOST_LINES // 2
    left_out = f'… {len(lines) - 2 * half} lines'
    lines = [*lines[:half], left_out, *lines[-half:]]
  if done.returncode:
    lines.append(f'(exit code {done.returncode})')
  return ''.join(f'{line}\n' for line in lines)


def page() -> str:
  """Runs all commands; the text of docs/transcripts.md."""
  from tests import pages

  text = [
    '# What the tutorials print\n\n'
    'Written by `python docs/transcripts.py`, which types the commands of the '
    'tutorials in small: a tiny model with random parameters, a few steps, '
    'drawn pictures for photos, and a directory in place of a bucket. So the '
    'numbers mean nothing; the lines are those that you see.\n'
  ]
  variables = {
    'COLUMNS': '80',
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
  }
  with tempfile.TemporaryDirectory() as temporary:
    files = pathlib.Path(temporary, 'files')
    files.mkdir()
    pages.prepare(files)
    for name in TUTORIALS:
      tutorial = ROOT / f'docs/tutorials/{name}.md'
      directory = pathlib.Path(temporary, name)
      shutil.copytree(files, directory)
      (directory / 'configs').symlink_to(ROOT / 'configs')
      for program in (ROOT / 'docs/tutorials').glob('*.py'):
        shutil.copy(program, directory)
      title = tutorial.read_text().splitlines()[0].removeprefix('# ')
      text.append(f'\n## [{title}](tutorials/{name}.md)\n')
      for line in pages.commands_of(f'docs/tutorials/{name}.md'):
        if not pages.why_not_run(line):
          print(typed(line), flush=True)
          printed = run(line, directory, variables)
          text.append(f'\n```text\n$ {typed(line)}\n{printed}```\n')
  return ''.join(text)


if __name__ == '__main__':
  sys.path.insert(0, str(ROOT))
  PAGE.write_text(page())
