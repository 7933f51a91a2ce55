"""Every command of README.md and docs/ runs, in small (`tests/pages.py`)."""

import glob
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest

from tests import pages
from tests.helpers import ROOT
from vit_jax.cli import parser
from vit_jax.recipe import overrides


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """The files of a reader."""
  directory = tmp_path_factory.mktemp('reader')
  pages.prepare(directory)
  return directory


@pytest.fixture(scope='module')
def finished():
  """{a run of a recipe, without its workdir: its workdir} of all pages."""
  return {}


def run(
  line: str, environment: dict[str, str], finished: dict[str, pathlib.Path]
) -> tuple[int, str]:
  """(exit code, command that was run) of a command of a page.

  A run of a recipe that another line has made is copied.
  """
  command = pages.small(line)
  if command.startswith('export '):
    environment.update(w.split('=', 1) for w in shlex.split(command)[1:])
    return 0, command
  if command.startswith('vit-jax '):
    argv = [
      name
      for word in shlex.split(command)[1:]
      for name in (sorted(glob.glob(word)) if '*' in word else ()) or (word,)
    ]
    what, _, workdir = command.partition(' --workdir ')
    is_run = argv[0] in ('train', 'ablate') and '--dry-run' not in argv
    if is_run and what in finished:
      shutil.copytree(finished[what], workdir, dirs_exist_ok=True)
      return 0, command
    try:
      code = parser.main(argv)
    except SystemExit as e:  # argparse
      code = e.code
    if is_run and not code:
      finished[what] = pathlib.Path(workdir).absolute()
    return code, command
  done = subprocess.run(
    ['bash', '-euo', 'pipefail', '-c', command],
    env={**os.environ, **environment, 'PYTHONPATH': ROOT},
    cwd=ROOT if 'launch/' in command else None,
    capture_output=True,
    text=True,
  )
  return done.returncode, f'{command}\n{done.stdout}{done.stderr}'


@pytest.mark.parametrize('page', pages.PAGES)
def test_every_command_of_a_page_can_be_read(page):
  """Commands and options exist, in full and in small."""
  build = parser.build_parser()
  for line in pages.commands_of(page):
    for text in (
      (line, pages.small(line)) if not pages.why_not_run(line) else (line,)
    ):
      argv = pages.words(text)
      if argv[:1] == ['vit-jax']:
        argv, _ = overrides.split_flags(argv[1:])
        assert parser._parse(build, argv).command == argv[0], text


def test_every_reason_not_to_run_a_command_is_needed():
  lines = [line for page in pages.PAGES for line in pages.commands_of(page)]
  for pattern in pages.NOT_RUN:
    assert any(re.match(pattern, line) for line in lines), pattern


@pytest.mark.slow
@pytest.mark.parametrize('page', pages.PAGES)
def test_every_command_of_a_page_runs(
  page, files, finished, tmp_path, monkeypatch
):
  lines = [x for x in pages.commands_of(page) if not pages.why_not_run(x)]
  reader = tmp_path / 'reader'
  shutil.copytree(files, reader)
  (reader / 'configs').symlink_to(pathlib.Path(ROOT, 'configs'))
  for path in pathlib.Path(ROOT, 'docs/tutorials').glob('*.py'):
    shutil.copy(path, reader)
  monkeypatch.chdir(reader)
  monkeypatch.setenv('COLUMNS', '80')
  environment = {}
  for line in lines:
    code, shown = run(line, environment, finished)
    assert code == 0, shown
    if shown.startswith('vit-jax train') and '--dry-run' not in shown:
      workdir = shown.split('--workdir ')[1]
      summary = json.loads(pathlib.Path(workdir, 'summary.json').read_text())
      assert summary['results'], shown


@pytest.mark.slow
def test_the_notebook_runs(files, tmp_path, monkeypatch, capsys):
  """Its cells, one after the other, without jupyter."""
  shutil.copytree(files, tmp_path / 'reader')
  monkeypatch.chdir(tmp_path / 'reader')
  book = json.loads(
    pathlib.Path(ROOT, 'docs/tutorials/vit_jax.ipynb').read_text()
  )
  variables = {}
  for number, cell in enumerate(book['cells']):
    if cell['cell_type'] == 'code':
      code = ''.join(cell['source']).replace('vit_b16', 'vit_mu16')
      exec(compile(code, f'vit_jax.ipynb, cell {number}', 'exec'), variables)
  assert variables['losses'][-1] < variables['losses'][0]
  assert pathlib.Path('rollout.png').stat().st_size
  assert "'class': 'rose'" in capsys.readouterr().out


def test_the_tutorial_shows_the_program_for_other_machines():
  tutorials = pathlib.Path(ROOT, 'docs/tutorials')
  shown = pages.blocks((tutorials / 'own_photos.md').read_text(), 'python')
  assert (tutorials / 'classify.py').read_text() in shown


def test_the_transcripts_have_every_command_of_the_tutorials():
  """Written by: python docs/transcripts.py"""
  spec = importlib.util.spec_from_file_location(
    'docs_transcripts', pathlib.Path(ROOT, 'docs/transcripts.py')
  )
  transcripts = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(transcripts)
  text = transcripts.PAGE.read_text()
  for name in transcripts.TUTORIALS:
    for line in pages.commands_of(f'docs/tutorials/{name}.md'):
      if not pages.why_not_run(line):
        assert f'$ {transcripts.typed(line)}\n' in text, line
  assert 'Traceback' not in text
