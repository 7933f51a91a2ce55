"""Keeps compiled programs on the disk, so that a second start compiles nothing.

JAX looks up every program by its code, the versions and the machine's features,
so a program that does not fit is never taken.
"""

import os
import pathlib
import sys

_FOLDER = 'JAX_COMPILATION_CACHE_DIR'
_SIZE = 'JAX_COMPILATION_CACHE_MAX_SIZE'
_SECONDS = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
_ENABLED = 'JAX_ENABLE_COMPILATION_CACHE'
_MOST = (
  5 * 2**30
)  # bytes; the programs that were used least recently are deleted
# Seconds. With JAX's own limit of 1, a quick machine compiles the programs of
# half a second at every start. To read a program takes 10 ms.
_SHORTEST = 0.05


def default_folder() -> pathlib.Path:
  """`vit_jax/programs` in the user's cache folder."""
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(cache).expanduser() / 'vit_jax' / 'programs'


def keep_programs() -> None:
  """Turns JAX's cache of compiled programs on, at the start of a command.

  It keeps programs whose compilation took 0.05 seconds or longer, 5 GiB at
  most. Variables of JAX that the user has set count: JAX_COMPILATION_CACHE_DIR,
  JAX_COMPILATION_CACHE_MAX_SIZE and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS,
  and JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off. Nothing is kept if the
  folder cannot be written.
  """
  if os.environ.get(_FOLDER) or os.environ.get(_ENABLED):
    return
  try:
    folder = default_folder()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # RuntimeError: the user has no home
    return
  if not os.access(folder, os.W_OK):
    return
  os.environ[_FOLDER] = str(folder)
  os.environ.setdefault(_SIZE, str(_MOST))
  os.environ.setdefault(_SECONDS, str(_SHORTEST))
  if 'jax' in sys.modules:  # it has read the variables already
    import jax

    jax.config.update('jax_compilation_cache_dir', os.environ[_FOLDER])
    jax.config.update('jax_compilation_cache_max_size', int(os.environ[_SIZE]))
    jax.config.update(
      'jax_persistent_cache_min_compile_time_secs', float(os.environ[_SECONDS])
    )
