"""Computes the table of models that `vit-jax models` prints.

    python -m vit_jax.inference.catalog

It is run after a change of a model, and takes about a minute.
"""

from vit_jax.files import write_atomically
from vit_jax.inference.describe import describe_models
from vit_jax.models.catalog import PATH, catalog_text


def main() -> None:
  rows = list(describe_models())
  write_atomically(str(PATH), catalog_text(rows))
  print(f'wrote {PATH}: {len(rows)} models')


if __name__ == '__main__':
  main()
