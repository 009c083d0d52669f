"""Running configurations: `run(get_recipe("digits"), "runs/digits")`; comparing methods; reading finished runs."""

from apical.runs import _final as _final  # registers two methods
from apical.runs._compare import compare
from apical.runs._hub import from_pretrained, push_to_hub
from apical.runs._live import LoggerFactory, logger_factory
from apical.runs._methods import method_options, methods, register_method
from apical.runs._run import run
from apical.runs._stored import load_run, load_serving, read_config

__all__ = [
    "LoggerFactory",
    "compare",
    "from_pretrained",
    "load_run",
    "load_serving",
    "logger_factory",
    "method_options",
    "methods",
    "push_to_hub",
    "read_config",
    "register_method",
    "run",
]
