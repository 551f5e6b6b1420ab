"""Our latents in Hax, by the interface that its viewer loads."""

import importlib.util
import shlex

import numpy as np
import pytest

from dynamight_core.analysis.state_maps import StateModels
from dynamight_core.files import read_map
from dynamight_core.run import Run
from dynamight_scipion.annotate_space import INTERFACE, getAnnotateSpaceArguments
from dynamight_scipion.objects import FLEX_PROGRAM


def argumentsOf(words):
    """Return the arguments as Hax's parser does: names to texts, of those given twice the last."""
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def test_latents_become_maps_through_the_file_that_hax_loads(chain, tmp_path):
    particles = chain["deformations"].outputParticles
    arguments = argumentsOf(shlex.split(getAnnotateSpaceArguments(particles, tmp_path)))
    assert np.loadtxt(arguments["z_space_reduced"]).shape == (len(particles), 3), "the viewer draws in space"

    # As Hax's server does it.
    spec = importlib.util.spec_from_file_location("loaded_module", arguments["server_functions_path"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    template = str(tmp_path / "decoded_map_class_{:02d}.mrc")
    interface = module.HeterogeneityProgramInterface(
        _path_template=template, _program_loading_params=arguments | {"outdir": str(tmp_path)}
    )
    latents = np.array([[0.0, 0.0, 0.0], [0.5, -0.2, 0.1]])
    interface.decode_state_from_latent(latent=latents)
    run = Run(chain["deformations"].outputModel.getRunFolder())
    for number, latent in enumerate(latents, 1):
        expected = StateModels(run).volume(latent)
        np.testing.assert_allclose(read_map(template.format(number))[0], expected, atol=1e-4 * np.abs(expected).max())
    with pytest.raises(RuntimeError, match="4 coordinates"):
        interface.decode_state_from_latent(latent=np.zeros((1, 4)))
    interface.model.stdin.close()
    assert interface.model.wait(30) == 0, "the engine ends with the viewer"


def test_the_interface_needs_nothing_that_hax_may_not_have():
    imports = [line.split()[1] for line in open(INTERFACE) if line.startswith(("import ", "from "))]
    assert set(imports) == {"atexit", "json", "os", "subprocess"}


def test_the_name_of_our_latents_is_fit_for_files_and_not_that_of_other_programs():
    assert FLEX_PROGRAM.isidentifier()
    known = {"Zernike3D", "HetSIREN", "ReconSIREN", "FlexConsensus", "FlexSIREN", "NMA", "CryoDRGN", "cryoSPARC"}
    assert FLEX_PROGRAM not in known | {"Dynamight", "Opus-DSD", "FromFiles"}
