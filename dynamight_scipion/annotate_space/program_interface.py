"""Maps of conformations for Hax's annotate_space, which loads this file by its path, in Hax's environment.

It needs the standard library only: the engine runs in an environment of its own, as a program that is asked for one map
after the other.
"""

import atexit
import json
import os
import subprocess


class HeterogeneityProgramInterface:
    """Turns motion coordinates into maps; the name and the methods are those that Hax calls.

    Parameters
    ----------
    _path_template
        of the maps' paths, with a place for their number, from 1.
    _program_loading_params
        arguments of annotate_space; of ours, `engine` is the shell line that starts the engine.
    """

    def __init__(self, _path_template, _program_loading_params):
        self.path_template = _path_template
        self.model = self.prepare_heterogeneity_program(**_program_loading_params)

    def prepare_heterogeneity_program(self, **kwargs):
        """Start the engine, which stays until the viewer is closed, and return its process."""
        # Hax's Python is not the engine's.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        process = subprocess.Popen(
            ["bash", "-c", kwargs["engine"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        atexit.register(process.stdin.close)
        return process

    def decode_state_from_latent(self, latent):
        """Write the map of every row of (n, K) coordinates (Å rms)."""
        for number, coordinates in enumerate(latent, 1):
            path = os.path.abspath(self.path_template.format(number))
            request = {"at": [float(value) for value in coordinates], "out": path}
            self.model.stdin.write(json.dumps(request) + "\n")
            self.model.stdin.flush()
            answer = self.model.stdout.readline()
            if not answer:
                raise RuntimeError("the engine of Dynamight has ended; its message is above")
            error = json.loads(answer).get("error")
            if error:
                raise RuntimeError(f"Dynamight: {error}")
