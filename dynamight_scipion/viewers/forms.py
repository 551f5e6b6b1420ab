"""What the viewers' forms share: lines with an eye, each declared at the method that it opens."""

import pyworkflow.protocol.params as params
from pwem.objects import SetOfClassesFlex
from pwem.viewers import EmProtocolViewer
from pyworkflow.protocol import Protocol
from pyworkflow.viewer import DESKTOP_TKINTER

from dynamight_scipion.convert import ConversionError
from dynamight_scipion.objects import FLEX_PROGRAM

from .chimera import chimeraView


def view(label, text="", **more):
    """Declare what a method `_showName`, which returns a view or a list of them, is called in the form.

    Parameters
    ----------
    label, text
        of the line "name", and its help; empty where it is known only when the form opens.
    more
        settings of the line, such as important.
    """

    def declare(method):
        method.line = {"label": label, "help": text, **more}
        return method

    return declare


class ResultsViewer(EmProtocolViewer):
    """A viewer of a protocol or its outputs; methods with `view` are lines of its form."""

    _environments = [DESKTOP_TKINTER]

    def __init__(self, **kwargs):
        EmProtocolViewer.__init__(self, **kwargs)
        self._parentWindow = kwargs.get("parent")

    @classmethod
    def can_handle_this_instance(cls, instance):
        """Whether an object is of this plugin: flexible sets can be of any."""
        if isinstance(instance, SetOfClassesFlex):
            instance = instance.getFirstItem()
        if hasattr(instance, "getFlexInfo"):
            return instance.getFlexInfo().getProgName() == FLEX_PROGRAM
        return instance is not None

    def visualize(self, obj, **args):
        """Open the window for a protocol or its output, or explain why there is nothing to show yet."""
        missing = self._findMissing(obj)
        if missing:
            self.infoMessage(missing, "No results").show()
            return
        args.setdefault("windows", self._parentWindow)
        super().visualize(obj if isinstance(obj, Protocol) else self._project.getProtocol(obj.getObjParentId()), **args)

    def _findMissing(self, obj):
        """Take what the viewer was opened from; return a sentence if it has no results yet."""
        raise NotImplementedError

    def addViews(self, form, *names, **changed):
        """Add the lines of views to a form or group, with settings that are otherwise than declared."""
        for name in names:
            form.addParam(name, params.LabelParam, **{**self._getView(name).line, **changed})

    def _getView(self, name):
        return getattr(self, f"_show{name[0].upper()}{name[1:]}")

    def _getVisualizeDict(self):
        names = (name.replace("_show", "", 1) for name in dir(type(self)) if hasattr(getattr(type(self), name), "line"))
        return dict.fromkeys((name[0].lower() + name[1:] for name in names), self._showOrExplain)

    def _showOrExplain(self, name):
        """Return views, or a message where a file that they show was not written."""
        try:
            views = self._getView(name)()
        except ConversionError as error:
            views = self.infoMessage(str(error), "Missing file")
        return views if isinstance(views, list) else [views]

    def _describe(self, title):
        """Return a message with the protocol's summary."""
        return self.infoMessage("\n\n".join(self.protocol.summary()), title)

    def _openChimera(self, name, commands):
        """Return a view of a session whose script is kept in the protocol's folder."""
        return chimeraView(self.protocol._getExtraPath(name), commands, self._tkRoot)
