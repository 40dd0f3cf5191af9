"""The console scripts: the only room that imports hydra and omegaconf."""

import os

# Threads of OpenMP spin while they wait, unless told not to before torch is loaded: on a machine with other work that
# multiplies the time of a step. What the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
