"""Names that the plugin, Scipion's configuration and the engine agree on."""

PROGRAM = "dynamight"
ENGINE = "dynamight-core"
# The engine's release that this plugin was written against, and the one that it installs.
ENGINE_VERSION = "0.1.0"

# Variables of Scipion's configuration
DYNAMIGHT_HOME = "DYNAMIGHT_HOME"
DYNAMIGHT_ENV_ACTIVATION = "DYNAMIGHT_ENV_ACTIVATION"
DYNAMIGHT_OPTIONS = "DYNAMIGHT_OPTIONS"
