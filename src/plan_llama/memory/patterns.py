from plan_llama.engines.overrides import *  # noqa
