"""Runs vit_jax.main in a process that gets a signal at some step.

    python tests/multihost_worker.py EVENT --config=... --workdir=... ...

EVENT is 'none', or 'SIGNAL:PROCESS:STEP': at that step that process sends
itself SIGTERM or SIGKILL. From then on every step is slowed down, because JAX
looks for the signal only once per second.
"""

import os
import signal
import sys
import time

LOST_AFTER = 15.0


def main():
  event = sys.argv.pop(1)
  from vit_jax import main as vit_main
  from vit_jax.parallel import processes

  initialize, tick = processes.initialize, processes.tick
  processes.initialize = lambda *args: initialize(
    *args, timeout=60, lost_after=LOST_AFTER
  )
  if event != 'none':
    name, process, at_step = event.split(':')

    def tick_and_more(step):
      tick(step)
      if step == int(at_step) and (processes._job.process_id == int(process)):
        os.kill(os.getpid(), signal.Signals[name])
      if step >= int(at_step):
        time.sleep(0.3)

    processes.tick = tick_and_more
  vit_main.main()


if __name__ == '__main__':
  main()
