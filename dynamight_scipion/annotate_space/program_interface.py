"""Maps of conformations for Hax's annotate_space, which loads this file by its path, in Hax's environment.

It needs only the standard library: the engine runs as a program in its own environment and writes maps on request.
"""

import atexit
import json
import os
import subprocess


class HeterogeneityProgramInterface:
    """Decodes motion coordinates to maps; Hax prescribes the name and the methods.

    Parameters
    ----------
    _path_template
        path of the maps, with a placeholder for their number (from 1).
    _program_loading_params
        arguments of annotate_space; `engine` is the shell command that starts the engine.
    """

    def __init__(self, _path_template, _program_loading_params):
        self.path_template = _path_template
        self.model = self.prepare_heterogeneity_program(**_program_loading_params)

    def prepare_heterogeneity_program(self, **kwargs):
        """Start the engine, which runs until the viewer is closed, and return its process."""
        # Hax's Python is not the engine's.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        process = subprocess.Popen(
            ["bash", "-c", kwargs["engine"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdin is not None
        atexit.register(process.stdin.close)
        return process

    def decode_state_from_latent(self, latent):
        """Write one map for each row of (n, K) coordinates (Å rms)."""
        for number, coordinates in enumerate(latent, 1):
            path = os.path.abspath(self.path_template.format(number))
            request = {"at": [float(value) for value in coordinates], "out": path}
            self.model.stdin.write(json.dumps(request) + "\n")
            self.model.stdin.flush()
            answer = self.model.stdout.readline()
            if not answer:
                raise RuntimeError("the Dynamight engine has ended; see its message above")
            error = json.loads(answer).get("error")
            if error:
                raise RuntimeError(f"Dynamight: {error}")
