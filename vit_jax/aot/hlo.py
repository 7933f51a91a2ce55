"""Reads collectives and estimated cycles from a compiled program's text."""

import collections
from collections.abc import Callable, Iterator, Mapping
import math
import re

from vit_jax.aot.kernels import key

_BYTES = {
  'pred': 1,
  's8': 1,
  'u8': 1,
  's16': 2,
  'u16': 2,
  'bf16': 2,
  'f16': 2,
  's32': 4,
  'u32': 4,
  'f32': 4,
  's64': 8,
  'u64': 8,
  'f64': 8,
}
_COLLECTIVE = re.compile(
  r'(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)'
  r'(-start)?$'
)
_INSTRUCTION = re.compile(
  r'\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][\w\-]*)\((.*)', re.DOTALL
)
# Kinds of layers, by the names in the program's metadata; the first match
# counts.
_LAYER_KINDS = (
  ('attention', r'MultiHead\w+_\d+/(?!query|key|value|out)|attend'),
  ('projections', r'MultiHead|/qkv|/proj'),
  ('mlp', r'[Mm]lp|Dense_[01]|channel_mixing|token_mixing'),
  ('norm', r'Norm|norm'),
  ('head', r'/head|pre_logits'),
  ('embedding', r'embedding|/cls|stem'),
  ('other', r''),
)


def _sizes(type_text: str) -> list[int]:
  """Bytes of each array of a type: 'bf16[8,128]{1,0}' or '(f32[2], s32[])'."""
  return [
    math.prod(int(d) for d in dims.split(',') if d) * _BYTES[dtype]
    for dtype, dims in re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', type_text)
    if dtype in _BYTES
  ]


class Program:
  """The text of a compiled program: its instructions by computation.

  Attributes:
    kernels: {`kernels.key`: a dict with 'cycles' and more}, the prices of the
      Pallas kernels, for which the text has no estimate.
  """

  def __init__(self, text: str, kernels: Mapping[str, dict] | None = None):
    self.kernels = kernels or {}
    # {computation: its instructions (name, type, operation, arguments)}, in the
    # order in which they are executed.
    self._instructions = collections.defaultdict(list)
    current = None
    for line in text.splitlines():
      header = re.match(r'(ENTRY )?%(\S+) \(.*\{$', line)
      if header:
        current = header[2]
        if header[1]:
          self._entry = current
      elif current and line.startswith('  '):
        match = _INSTRUCTION.match(line)
        if match:
          self._instructions[current].append(match.groups())

    self._scattered = {
      name
      for computation, instructions in self._instructions.items()
      if computation.startswith('all-reduce-scatter')
      for name, *_ in instructions
    }

  def _callees(self, rest: str, key: str) -> list[str]:
    """The computations that an instruction names after `key=`."""
    names = re.findall(rf'\b{key}=\{{?((?:%[\w.\-]+(?:, )?)+)', rest)
    return re.findall(r'%([\w.\-]+)', names[0]) if names else []

  def _trips(self, rest: str) -> int:
    """Trip count of a loop: the bound in its condition, as it counts from 0."""
    bounds: list[int] = []
    names = self._callees(rest, 'condition')
    while names:
      for _, kind, op, arguments in self._instructions[names.pop()]:
        if op == 'constant' and kind.startswith(('s32[]', 'u32[]')):
          bounds += map(int, re.findall(r'^-?\d+', arguments))
        names += self._callees(arguments, 'calls')
    return max(bounds, default=1)

  def walk(
    self, computation: str | None = None, times: int = 1, inside: bool = False
  ) -> Iterator[tuple[int, bool, tuple[str, ...]]]:
    """Visits all instructions that a computation executes, in all branches.

    Args:
      computation: name of the computation; None for the whole program.
      times: how often the computation is executed.
      inside: whether it is inside of a fusion.

    Yields:
      How often an instruction is executed, whether it is inside of a fusion,
      and its (name, type, operation, arguments).
    """
    for instruction in self._instructions[computation or self._entry]:
      _, _, op, rest = instruction
      yield times, inside, instruction
      for repeats, name in self._called(instruction):
        yield from self.walk(name, times * repeats, inside)
      if op not in ('while', 'call', 'conditional'):
        for name in self._callees(rest, 'calls'):
          yield from self.walk(name, times, True)

  def _cycles_of(self, instruction: tuple[str, ...]) -> int:
    """Estimated cycles of an instruction, without what it calls."""
    _, kind, _, rest = instruction
    estimate = re.search(r'"estimated_cycles":"(\d+)"', rest)
    if estimate:
      return int(estimate[1])
    return self.kernels.get(_kernel_key(kind, rest), {}).get('cycles', 0)

  def cycles(self) -> tuple[int, dict[str, int]]:
    """Estimated cycles of one execution, in all and by kind of layer."""
    cycles = collections.Counter()
    for times, inside, instruction in self.walk():
      estimate = 0 if inside else self._cycles_of(instruction)
      if estimate:
        name = re.search(r'op_name="([^"]*)"', instruction[3])
        name = name[1] if name else ''
        kind = next(k for k, regex in _LAYER_KINDS if re.search(regex, name))
        if kind != 'other':
          kind += ' backward' if 'transpose(' in name else ' forward'
        cycles[kind] += times * estimate
    return sum(cycles.values()), dict(cycles.most_common())

  def kernel_calls(self) -> dict[str, int]:
    """How often each Pallas kernel is executed, by its `kernels.key`."""
    calls = collections.Counter()
    for times, _, (_, kind, _, rest) in self.walk():
      name = _kernel_key(kind, rest)
      if name:
        calls[name] += times
    return dict(calls)

  def seconds(
    self,
    seconds_per_cycle: float,
    wire_seconds: Callable[[str, int], float],
    computation: str | None = None,
  ) -> float:
    """The time of one execution, with collectives where they are scheduled.

    The compiled program is a schedule. What it executes after the start and
    before the end of a collective overlaps with it; a collective that is one
    instruction overlaps with nothing. Collectives follow one another.

    Args:
      seconds_per_cycle: duration of a cycle.
      wire_seconds: duration of a collective by its kind and bytes.
      computation: name of the computation; None for the whole program.
    """
    instructions = self._instructions[computation or self._entry]
    touched = [self._channels(x) for x in instructions]
    last = {c: i for i, channels in enumerate(touched) for c in channels}
    now = wire_free = 0.0
    ends: dict[str, float] = {}
    for i, (instruction, channels) in enumerate(
      zip(instructions, touched, strict=True)
    ):
      started = [c for c in channels if c not in ends]
      for c in started:
        wire_free = max(wire_free, now) + wire_seconds(*channels[c])
        ends[c] = wire_free
      now += self._cycles_of(instruction) * seconds_per_cycle
      for times, name in self._called(instruction):
        inner = self.seconds(seconds_per_cycle, wire_seconds, name)
        now = max(now, wire_free if inner else now) + times * inner
        wire_free = max(wire_free, now if inner else wire_free)
      for c in channels:
        if last[c] == i:
          now = max(now, ends[c])
    return max(now, wire_free)

  def _called(self, instruction: tuple[str, ...]) -> list[tuple[int, str]]:
    """The computations that run inside of an instruction, and how often."""
    _, _, op, rest = instruction
    if op == 'while':
      trips = self._trips(rest)
      return [(trips, name) for name in self._callees(rest, 'body')]
    if op not in ('call', 'conditional'):
      return []
    keys = (
      'to_apply',
      'branch_computations',
      'true_computation',
      'false_computation',
    )
    return [(1, name) for key in keys for name in self._callees(rest, key)]

  def _channels(
    self, instruction: tuple[str, ...]
  ) -> dict[str, tuple[str, int]]:
    """{collective: (kind, bytes)} that an instruction starts, runs or ends.

    Newer chips run a collective beside matrix products. It is then in several
    fusions: one that starts it, some that compute meanwhile, one that ends it.
    All have its channel.
    """
    name, _, op, rest = instruction
    start = re.match(r'%([\w.\-]+)', rest)
    if op.endswith('-done') and start:
      of_collective = _COLLECTIVE.match(op.removesuffix('-done'))
      return {start[1]: ('', 0)} if of_collective else {}
    collective = self._collective(instruction)
    if collective:
      channel = re.search(r'channel_id=(\d+)', rest)
      if channel and not op.endswith('-start'):
        return {channel[1]: collective}
      return {name: collective}
    channels = {}
    if op not in ('while', 'call', 'conditional'):
      for callee in self._callees(rest, 'calls'):
        for inner in self._instructions[callee]:
          channels |= self._channels(inner)
    return channels

  def _collective(self, instruction: tuple[str, ...]) -> tuple[str, int] | None:
    """The kind and the bytes of a collective; None for other instructions.

    The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and a
    slice.
    """
    name, kind, op, rest = instruction
    match = _COLLECTIVE.match(op)
    if not match:
      return None
    sizes = _sizes(kind)
    if match[2] and match[1] != 'all-reduce':
      sizes = sizes[len(sizes) // 2 :]  # a start's type is (inputs, outputs)
    if name in self._scattered:
      return 'reduce-scatter', sum(sizes)
    group = _first_group(rest) if match[1] == 'reduce-scatter' else None
    return match[1], sum(sizes) * len(group or [0])

  def collectives(self, mesh_shape: dict[str, int]) -> list[dict]:
    """The collectives of the program, by kind and mesh axes.

    Args:
      mesh_shape: {mesh axis: number of devices}.

    Returns:
      Dicts with 'kind', 'axes', 'executions', 'bytes' (of the whole arrays that
      are reduced, gathered or moved) and 'largest' (bytes of the largest one).
    """
    rows = collections.defaultdict(lambda: [0, 0, 0])
    seen = set()
    for times, inside, instruction in self.walk():
      entry = self._collective(instruction)
      if entry is None:
        continue
      name, size = entry
      _, _, _, rest = instruction
      channel = re.search(r'channel_id=(\d+)', rest)
      if inside and channel:
        if channel[1] in seen:  # another fusion of the same collective
          continue
        seen.add(channel[1])
      axes, _ = _axes(rest, mesh_shape)
      row = rows[name, axes]
      row[0] += times
      row[1] += times * size
      row[2] = max(row[2], size)
    return [
      dict(kind=kind, axes=axes, executions=n, bytes=size, largest=most)
      for (kind, axes), (n, size, most) in sorted(
        rows.items(), key=lambda x: -x[1][1]
      )
    ]


def _kernel_key(kind: str, rest: str) -> str:
  """The `kernels.key` of a call of a Pallas kernel; '' for others."""
  if 'custom_call_target="tpu_custom_call"' not in rest[:5000]:
    return ''
  constraints = re.search(r'operand_layout_constraints=\{(.*?\})\}', rest)
  types = lambda text: re.findall(r'\b[a-z]+\d*\[[\d,]*\]', text)
  return key(types(constraints[1]) if constraints else [], types(kind))


def _iota(dims: str, order: str | None):
  """The array of device numbers that XLA writes as '[4,2]T(1,0)'."""
  import numpy as np

  shape = [int(d) for d in dims.split(',')]
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose([int(d) for d in order.split(',')]) if order else ids


def _first_group(rest: str) -> list[int] | None:
  """The devices of the first replica group, in one of XLA's three notations."""
  # mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, or with device_ids=([2,4]T(1,0))
  match = re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]'
    r"(?:T\(([\d,]+)\))?\))? \{((?:'\w+'(?:, ?|,)?)+)\}",
    rest,
  )
  if match:
    sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", match[1])}
    ids = _iota(match[2] or str(math.prod(sizes.values())), match[3])
    ids = ids.reshape(list(sizes.values()))
    chosen = re.findall(r"'(\w+)'", match[4])
    index = tuple(slice(None) if k in chosen else 0 for k in sizes)
    return ids[index].flatten().tolist()
  # [groups,size]<=[dims]T(order)
  match = re.search(
    r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest
  )
  if match:
    ids = _iota(match[3], match[4])
    return ids.reshape(int(match[1]), int(match[2]))[0].tolist()
  # {{0,1},{2,3}}
  match = re.search(r'replica_groups=\{\{([\d,]+)\}', rest)
  return [int(i) for i in match[1].split(',')] if match else None


def _axes(rest: str, mesh_shape: dict[str, int]) -> tuple[str, int]:
  """The mesh axes along which a collective works, and its group size."""
  group, total = _first_group(rest), math.prod(mesh_shape.values())
  if group is None:
    pairs = re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', rest)
    if not pairs:
      return 'all', total
    group = [int(pairs[1]), int(pairs[2])]
  coordinates = []  # one {mesh axis: index} for each device
  for device in group:
    coordinate = {}
    for axis in reversed(mesh_shape):
      device, coordinate[axis] = divmod(device, mesh_shape[axis])
    coordinates.append(coordinate)
  axes = [a for a in mesh_shape if len({c[a] for c in coordinates}) > 1]
  return ' x '.join(axes) or 'none', len(group)
