"""The workflow template, as Scipion's list of templates offers it."""

import json
import re

from pyworkflow.template import TemplateList

from dynamight_scipion.protocols import DynamightProtDeformations, DynamightProtReconstruct, DynamightProtStates


def test_the_template_is_offered_asks_for_files_and_becomes_a_wired_workflow(workflow, simulated, tmp_path):
    offered = TemplateList()
    offered.addPluginTemplates("dynamight-flexible_molecule")
    (template,) = offered.templates
    assert "[" not in template.description
    assert len(template.description) > 50

    # As the windows do it: variables of the environment, then the form, then the file.
    template.replaceEnvVariables()
    template.parseContent()
    given = {
        "particles": simulated.particles,
        "map": simulated.consensus,
        "half1": simulated.half_maps[0],
        "half2": simulated.half_maps[1],
        "pixel": 6.0,
        "voxel": 6.0,
    }
    asked = {field.getAlias(): field for field in template.getParams().values()}
    assert set(given) | {"gaussians", "states"} == set(asked)
    for alias, value in given.items():
        template.setParamValue(alias, str(value))
    assert all(field.validate() is None for field in asked.values())
    path = template.createTemplateFile()

    created = workflow.project.loadProtocols(path)
    assert len(created) == len(json.load(open(path)))
    particles, volume, deformations, reconstruction, states = created.values()
    classes = [type(protocol) for protocol in (deformations, reconstruction, states)]
    assert classes == [DynamightProtDeformations, DynamightProtReconstruct, DynamightProtStates]
    for protocol in (particles, volume):
        assert protocol.validate() == []
        workflow.launch(protocol)
        assert protocol.isFinished(), protocol.getErrorMessage()
    assert deformations.validate() == []
    assert len(deformations.inputParticles.get()) == 300
    assert len(deformations.inputVolume.get().getHalfMaps(asList=True)) == 2
    for protocol in (reconstruction, states):
        assert protocol.inputModel.getObjValue() is deformations
        assert protocol.inputModel.getExtended() == "outputModel"


def test_the_template_names_only_parameters_that_there_are():
    for protocolClass in (DynamightProtDeformations, DynamightProtReconstruct, DynamightProtStates):
        known = {name for name, _ in protocolClass().getDefinition().iterParams()}
        offered = TemplateList()
        offered.addPluginTemplates()
        (template,) = [found for found in offered.templates if found.name == "flexible_molecule"]
        text = re.sub("~.*?~", "0", template.getContent())
        (entry,) = [e for e in json.loads(text) if e["object.className"] == protocolClass.__name__]
        assert {name for name in entry if not name.startswith("object.")} <= known
