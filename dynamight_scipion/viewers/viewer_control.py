"""Viewer of a control experiment: its verdict, and the curves behind it."""

import pyworkflow.protocol.params as params
from pwem.viewers import EmProtocolViewer
from pyworkflow.viewer import DESKTOP_TKINTER

from dynamight_scipion.protocols import DynamightProtControl

from .figures import drawFsc, paletteOf
from .windows import figureView


class DynamightControlViewer(EmProtocolViewer):
    """What a control experiment found."""

    _label = "control experiment"
    _environments = [DESKTOP_TKINTER]
    _targets = [DynamightProtControl]

    def visualize(self, obj, **args):
        """Open the window for the protocol."""
        if not obj.isFinished():
            self.infoMessage("There is no verdict yet: wait until the protocol has finished.", "No results").show()
            return
        super().visualize(obj, **args)

    def _defineParams(self, form):
        form.addSection(label="Results")
        form.addParam(
            "verdict",
            params.LabelParam,
            important=True,
            label=self.protocol.loadControl()["verdict"].capitalize(),
            help="The verdict in one sentence, with its values.",
        )
        if hasattr(self.protocol, "outputFSCs"):
            form.addParam(
                "curves", params.LabelParam, label="Fourier shell correlation", help="The curves behind the verdict."
            )

    def _getVisualizeDict(self):
        return {"verdict": self._showVerdict, "curves": self._showCurves}

    def _showVerdict(self, _):
        return [self.infoMessage("\n\n".join(self.protocol.summary()), "Control experiment")]

    def _showCurves(self, _):
        # Items of a set are one object, filled again and again.
        curves = [item.clone() for item in self.protocol.outputFSCs.iterItems()]
        drawn = [
            (curve.getObjLabel(), *curve.getData(), {"color": colour, "linewidth": 1.6})
            for curve, colour in zip(curves, paletteOf(curves), strict=True)
        ]
        return [figureView("Control experiment", (7.5, 5), drawFsc, drawn)]
