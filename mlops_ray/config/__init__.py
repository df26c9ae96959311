"""The project file: one YAML file as frozen, typed models.

An unknown key is an error that names the nearest known one, with file and line. A file holds only what
differs from the defaults that stand here. `load` is the only way in.
"""

from mlops_ray.config.project import CALENDAR_KINDS as CALENDAR_KINDS
from mlops_ray.config.project import TAKEN as TAKEN
from mlops_ray.config.project import Batching as Batching
from mlops_ray.config.project import CanaryStep as CanaryStep
from mlops_ray.config.project import ClassWeights as ClassWeights
from mlops_ray.config.project import Cost as Cost
from mlops_ray.config.project import Feature as Feature
from mlops_ray.config.project import Gate as Gate
from mlops_ray.config.project import Imbalance as Imbalance
from mlops_ray.config.project import Lag as Lag
from mlops_ray.config.project import OwnFamily as OwnFamily
from mlops_ray.config.project import Postprocess as Postprocess
from mlops_ray.config.project import Project as Project
from mlops_ray.config.project import Recorded as Recorded
from mlops_ray.config.project import Release as Release
from mlops_ray.config.project import ReleaseState as ReleaseState
from mlops_ray.config.project import Serving as Serving
from mlops_ray.config.project import Shadow as Shadow
from mlops_ray.config.project import Target as Target
from mlops_ray.config.project import Threshold as Threshold
from mlops_ray.config.project import ThresholdFor as ThresholdFor
from mlops_ray.config.project import Training as Training
from mlops_ray.config.project import Validation as Validation
from mlops_ray.config.project import View as View
from mlops_ray.config.project import json_schema as json_schema
from mlops_ray.config.project import load as load
from mlops_ray.config.project import warnings as warnings
from mlops_ray.config.reading import at_rest as at_rest
from mlops_ray.config.reading import local_path as local_path
from mlops_ray.config.reading import resolve as resolve
from mlops_ray.config.reading import variables as variables
from mlops_ray.config.source import ColumnSpec as ColumnSpec
from mlops_ray.config.source import Csv as Csv
from mlops_ray.config.source import Delta as Delta
from mlops_ray.config.source import EventTime as EventTime
from mlops_ray.config.source import Excel as Excel
from mlops_ray.config.source import File as File
from mlops_ray.config.source import Format as Format
from mlops_ray.config.source import JsonLines as JsonLines
from mlops_ray.config.source import KnownAt as KnownAt
from mlops_ray.config.source import Parquet as Parquet
from mlops_ray.config.source import Policy as Policy
from mlops_ray.config.source import RuleSpec as RuleSpec
from mlops_ray.config.source import Source as Source
from mlops_ray.config.source import SqlQuery as SqlQuery
from mlops_ray.config.values import MICROSECONDS as MICROSECONDS
from mlops_ray.config.values import Function as Function
from mlops_ray.config.values import Model as Model
from mlops_ray.config.values import Sql as Sql
from mlops_ray.config.values import duration_in_words as duration_in_words
from mlops_ray.config.values import parse_duration as parse_duration
