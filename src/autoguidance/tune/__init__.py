"""The search for a guidance setting: what can be chosen, what to measure next, who measures it, and what it says.

`SearchSpace` (settings) -> `Policy` / `Contest` (what to measure next) -> `Board` (who measures what) -> `Measurer` (sample and measure)
-> `drive` (keeps workers busy).
"""

from autoguidance.tune.board import Board, Claim, Finished, MemoryBoard, State, Unit, open_board
from autoguidance.tune.contest import Contest, Entry
from autoguidance.tune.drive import drive
from autoguidance.tune.grid import Axis, Grid, Point
from autoguidance.tune.measuring import Measured, Measurer, MeasureSettings, Task, measurer
from autoguidance.tune.policy import Policy, Ranked, SearchPlan
from autoguidance.tune.space import EMA_STDS, WEIGHTS, GuideSource, SearchSpace, early_snapshots, guide_source
from autoguidance.tune.workers import begin_worker, end_with_parent, worker_context

__all__ = [
    "EMA_STDS",
    "WEIGHTS",
    "Axis",
    "Board",
    "Claim",
    "Contest",
    "Entry",
    "Finished",
    "Grid",
    "GuideSource",
    "MeasureSettings",
    "Measured",
    "Measurer",
    "MemoryBoard",
    "Point",
    "Policy",
    "Ranked",
    "SearchPlan",
    "SearchSpace",
    "State",
    "Task",
    "Unit",
    "begin_worker",
    "drive",
    "early_snapshots",
    "end_with_parent",
    "guide_source",
    "measurer",
    "open_board",
    "worker_context",
]
