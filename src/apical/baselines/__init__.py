"""What growing is compared with: rules that choose a network, one file each, and the `Comparator` that goes by one."""

from apical.baselines._comparator import Comparator, Course, Rule, Task
from apical.baselines._fixed import Dense, Final
from apical.baselines._iss import ISS
from apical.baselines._l1 import L1
from apical.baselines._slimming import Slimming
from apical.baselines._subject import Rows, Subject, network_record
from apical.baselines._taylor import Taylor
from apical.baselines._uniform import Uniform, uniform_keep

__all__ = [
    "ISS",
    "L1",
    "Comparator",
    "Course",
    "Dense",
    "Final",
    "Rows",
    "Rule",
    "Slimming",
    "Subject",
    "Task",
    "Taylor",
    "Uniform",
    "network_record",
    "uniform_keep",
]
