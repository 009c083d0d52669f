"""Running configurations: `run(get_recipe("digits"), "runs/digits")`; comparing methods; reading finished runs."""

from apical.runs import _final as _final  # registers two methods
from apical.runs._compare import Planned, compare, plan
from apical.runs._live import LoggedProgress, LoggerFactory, logger_factory
from apical.runs._methods import method_factory, method_options, methods, register_method, resolve_method
from apical.runs._run import run
from apical.runs._stored import load_run, load_serving, read_config
from apical.runs._trust import names_foreign_code, require_trusted

__all__ = [
    "LoggerFactory",
    "Planned",
    "compare",
    "load_run",
    "load_serving",
    "logger_factory",
    "method_factory",
    "method_options",
    "methods",
    "names_foreign_code",
    "plan",
    "read_config",
    "register_method",
    "require_trusted",
    "resolve_method",
    "run",
]
