"""Specs that are stored with the data, and compared when a store is opened: frozen dataclasses.

Each goes to a plain dict and back; two that are equal are compatible.
"""

from trakstore.spec.comparison import check_equal
from trakstore.spec.model_settings import Settings, check_settings, summary
from trakstore.spec.output_spec import OutputSpec
from trakstore.spec.parameter_spec import ParameterSpec
from trakstore.spec.projection_spec import ProjectionSpec
from trakstore.spec.projections import ProjectionKind
from trakstore.spec.scale_spec import ScaleSource, ScaleSpec
from trakstore.spec.split_spec import LossScale, SplitSpec
from trakstore.spec.store_spec import FORMAT_VERSION, FeatureDtype, Precision, StoreSpec

__all__ = [
    "FORMAT_VERSION",
    "FeatureDtype",
    "LossScale",
    "OutputSpec",
    "ParameterSpec",
    "Precision",
    "ProjectionKind",
    "ProjectionSpec",
    "ScaleSource",
    "ScaleSpec",
    "Settings",
    "SplitSpec",
    "StoreSpec",
    "check_equal",
    "check_settings",
    "summary",
]
