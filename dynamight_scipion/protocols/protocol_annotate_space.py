"""Hax's viewer of conformational spaces on our particles; needs the plugin scipion-em-hax."""

from hax.protocols.protocol_annotate_space import JaxProtAnnotateSpace
from pyworkflow import BETA

from dynamight_scipion.annotate_space import SHOWN_MOTIONS, getAnnotateSpaceArguments
from dynamight_scipion.objects import FLEX_PROGRAM


class DynamightProtAnnotateSpace(JaxProtAnnotateSpace):
    """Explore the space of motions with Hax: maps at any place of it, annotated places as classes of particles.

    This is Hax's own 'annotate space', told how to turn motion coordinates into maps. It opens its window as it runs.
    """

    _label = "annotate space (Hax)"
    _devStatus = BETA

    def runJob(self, program, arguments, **kwargs):
        """Start Hax's program with what it needs to decode our latents."""
        ours = getAnnotateSpaceArguments(self.particles.get(), self._getExtraPath())
        # Of arguments that are given twice, the program takes the last.
        super().runJob(program, f"{arguments} {ours}", **kwargs)

    def validate(self):
        """Return what is wrong with the input: here, particles of other programs too."""
        particles = self.particles.get()
        if particles is None:
            return ["*Particles to annotate* cannot be EMPTY."]
        if particles.getFlexInfo().getProgName() != FLEX_PROGRAM:
            return ["These are not particles of 'estimate deformations': use Hax's own 'annotate space' for them."]
        info = particles.getFlexInfo()
        if info.hasAttribute("space") and info.getAttr("space") != "motions":
            return [
                "The zFlex of these particles holds latents: set it to principal motions in 'estimate deformations'."
            ]
        if len(particles.getFirstItem().getZFlex()) < SHOWN_MOTIONS:
            return [f"Hax draws points in space: estimate deformations with {SHOWN_MOTIONS} principal motions or more."]
        return super().validate()
