"""Viewer of a control experiment: its verdict, and the curves behind it."""

from dynamight_scipion.protocols import DynamightProtControl

from .figures import drawFsc, paletteOf
from .forms import ResultsViewer, view
from .windows import figureView


class DynamightControlViewer(ResultsViewer):
    """What a control experiment found."""

    _label = "control experiment"
    _targets = [DynamightProtControl]

    def _findMissing(self, obj):
        return None if obj.isFinished() else "There is no verdict yet: wait until the protocol has finished."

    def _defineParams(self, form):
        form.addSection(label="Results")
        self.addViews(form, "verdict", label=self.protocol.loadControl()["verdict"].capitalize())
        if hasattr(self.protocol, "outputFSCs"):
            self.addViews(form, "curves")

    @view("Verdict", "The verdict in one sentence, with its values.", important=True)
    def _showVerdict(self):
        return self._describe("Control experiment")

    @view("Fourier shell correlation", "The curves behind the verdict.")
    def _showCurves(self):
        # Items of a set are one object, filled again and again.
        curves = [item.clone() for item in self.protocol.outputFSCs.iterItems()]
        drawn = [
            (curve.getObjLabel(), *curve.getData(), {"color": colour, "linewidth": 1.6})
            for curve, colour in zip(curves, paletteOf(curves))
        ]
        return figureView("Control experiment", (7.5, 5), drawFsc, drawn)
