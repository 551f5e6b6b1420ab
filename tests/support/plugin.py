"""The particles of the plugin's tests, and inputs of a second protocol beside the finished ones."""

BOX, PIXEL, PARTICLES = 32, 6.0, 300


def same_input(chain):
    """Input of another protocol that estimates deformations."""
    return {"inputParticles": (chain["particles"], "outputParticles"), "inputVolume": (chain["volume"], "outputVolume")}


def small(chain, **changed):
    """Parameters of the chain's small run, with some changed."""
    names = "nGaussians nEpochs encoderEpochs warmUpEpochs refits nLatents nMotions batchSize embedding"
    names += " validationFraction opticsStar"
    return {name: getattr(chain["deformations"], name).get() for name in names.split()} | {
        "numberOfThreads": 1,
        **changed,
    }
