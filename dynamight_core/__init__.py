"""Molecular motions from cryo-EM particle images, and the sharper maps that follow from them."""

import os

__version__ = "0.1.0"

# Threads that wait shall sleep. Spinning, they slow every process on a shared machine down, this one most: with
# two jobs on two cores an epoch took ten times as long. Has an effect only before torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
