"""The table of an ablation: columns, published values, costs."""

from vit_jax.ablation.table import table


def test_costs_in_the_table():
  results = {
    'a': {
      'runs': [{'seed': 0}],
      'mean': {'test top-1': 0.5},
      'std': {},
      'parameters': 12345.0,
      'gmacs': 0.01234,
      'img_per_sec': 99.6,
    },
    'b': {'runs': [], 'mean': {}, 'std': {}},
  }
  assert table(results).splitlines()[::2] == [
    '| variant | test top-1 | runs | parameters | GFLOPs | img/s |',
    '| a       |      50.00 |    1 |     12,345 | 0.0123 |   100 |',
  ]


def test_published_values_are_columns():
  variants = {
    'plain': {
      'overrides': {'published': 90.02},
      'runs': [{'seed': 0}, {'seed': 1}],
      'mean': {'test top-1': 0.9, 'test top-5': 0.99, 'test loss': 0.4},
      'std': {'test top-1': 0.01},
    },
    'max 2': {
      'overrides': {'published': {'top-1': 91.44, 'loss': 0.408}},
      'runs': [],
      'mean': {},
      'std': {},
    },
  }
  assert table(variants).splitlines()[::2] == [
    '| variant |   test top-1 | test loss | published top-1 | published loss '
    '| runs |',
    '| plain   | 90.00 ± 1.00 |     0.400 |           90.02 |                '
    '|    2 |',
  ]
