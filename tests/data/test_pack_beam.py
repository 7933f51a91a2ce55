"""Packing by a Beam pipeline: the same bytes as one process, in any order."""

import importlib.util
import json

import pytest

from tests.data.helpers import write_images
from vit_jax.cli import parser
from vit_jax.data import pack, pack_beam
from vit_jax.data.pack_inputs import number_labels, read_inputs
from vit_jax.data.pack_shards import Storing, plan_shards

HAS_BEAM = importlib.util.find_spec('apache_beam') is not None


def files_of(directory):
  return {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}


@pytest.fixture
def images(tmp_path):
  """Images of two classes and two splits; one of them is broken."""
  write_images(tmp_path / 'in' / 'train', {'a': 6, 'b': 7})
  write_images(tmp_path / 'in' / 'test', {'b': 3})
  (tmp_path / 'in' / 'train' / 'a' / '0.jpg').write_bytes(b'broken')
  return tmp_path / 'in'


def test_workers_write_each_shard_once(images, tmp_path):
  """What the workers do, one task at a time in reverse order."""
  pack.pack(images, tmp_path / 'one', split='train', shards=3)
  read = read_inputs([images], spool=tmp_path / 'spool', split='train')
  items = read.splits['train']
  numbers, _ = number_labels(read.names['train'], None, None)
  plans = plan_shards('train', items, numbers, shards=3, storing=Storing())
  out, folder = tmp_path / 'out', tmp_path / 'out' / 'train.packing'
  folder.mkdir(parents=True)

  def work(plans):
    pack_beam.store_plans(plans, folder)
    for plan in reversed(plans):
      path = out / plan.name
      pack_beam.write_task(str(folder), plan.name, str(path), 1)
    return {p.name: p.stat().st_mtime_ns for p in out.glob('*.array_record')}

  first = work(plans)
  for name in first:
    assert (out / name).read_bytes() == (tmp_path / 'one' / name).read_bytes()
  assert work(plans) == first  # all of them are finished
  names = sorted(first)
  (out / names[0]).write_bytes((out / names[0]).read_bytes()[:-1] + b'x')
  (out / names[1]).unlink()
  again = work(plans)
  assert [again[n] == first[n] for n in names] == [False, False, True]
  for name in names:
    assert (out / name).read_bytes() == (tmp_path / 'one' / name).read_bytes()
  # Other images, or images stored otherwise, are written again.
  other = plan_shards('train', items, numbers, shards=3, storing=Storing(8))
  shrunk = work(other)
  assert not set(shrunk.values()) & set(again.values())


def test_the_images_that_were_left_out_are_listed(images, tmp_path):
  out = tmp_path / 'out'
  pack.pack(images, out)
  lines = (out / 'train.bad.jsonl').read_text().splitlines()
  (bad,) = map(json.loads, lines)
  assert bad['id'] == 'a/0.jpg' and 'not an image' in bad['reason']
  assert not (out / 'test.bad.jsonl').exists()
  write_images(images / 'train', {'c': 1})
  (images / 'train' / 'a' / '0.jpg').unlink()
  pack.pack(images, out, overwrite=True)
  assert not (out / 'train.bad.jsonl').exists()


def test_options_of_the_runner_need_one(images, tmp_path, monkeypatch, capsys):
  command = ['pack', str(images), str(tmp_path / 'out')]
  assert parser.main([*command, '--runner-option', 'region=here']) == 1
  assert 'region=here needs --runner' in capsys.readouterr().err
  monkeypatch.setattr(pack_beam, 'find_spec', lambda name: None)
  assert parser.main([*command, '--runner', 'DirectRunner']) == 1
  assert "pip install 'vit_jax[beam]'" in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BEAM, reason='the extra beam is not installed')
@pytest.mark.filterwarnings('default')  # Beam's own
def test_a_pipeline_packs_as_one_process_does(images, tmp_path, monkeypatch):
  pack.pack(images, tmp_path / 'one', shards=3, short_side=12)
  command = ['pack', str(images), str(tmp_path / 'out'), '--shards', '3']
  command += ['--short-side', '12', '--runner', 'DirectRunner']
  # The first pipeline fails after some shards, as when a machine is lost.
  write, calls, resumed = pack_beam.write_shard, [], False

  def fail_at_the_second(plan, *args):
    calls.append(plan.name)
    if len(calls) == 2 and not resumed:
      raise OSError('the disk is lost')
    return write(plan, *args)

  monkeypatch.setattr(pack_beam, 'write_shard', fail_at_the_second)
  with pytest.raises(Exception, match='the disk is lost'):
    pack.pack(
      images,
      tmp_path / 'out',
      shards=3,
      short_side=12,
      runner=pack_beam.Runner('DirectRunner'),
    )
  assert not list((tmp_path / 'out').glob('*.json'))
  done = calls[0]
  calls.clear()
  resumed = True
  assert parser.main([*command, '--runner-option', 'direct_num_workers=1']) == 0
  assert done not in calls and len(calls) == 2 + 3  # and those of 'test'
  assert files_of(tmp_path / 'out') == files_of(tmp_path / 'one')
  assert not list((tmp_path / 'out').glob('*.packing'))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BEAM, reason='the extra beam is not installed')
def test_a_pipeline_of_several_processes(images, tmp_path):
  pack.pack(images, tmp_path / 'one', shards=4)
  command = ['pack', str(images), str(tmp_path / 'out'), '--shards', '4']
  command += ['--runner', 'DirectRunner']
  for option in (
    'direct_num_workers=2',
    'direct_running_mode=multi_processing',
  ):
    command += ['--runner-option', option]
  assert parser.main(command) == 0
  assert files_of(tmp_path / 'out') == files_of(tmp_path / 'one')
