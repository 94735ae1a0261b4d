"""Every way to balance tasks, told apart in settings by `kind`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from detmtl.balancing.dwa import DwaSettings
from detmtl.balancing.famo import FamoSettings
from detmtl.balancing.fixed import FixedSettings
from detmtl.balancing.from_torchjd import TorchJdSettings
from detmtl.balancing.geometric import GeometricSettings
from detmtl.balancing.gradnorm import GradNormSettings
from detmtl.balancing.losses import BalancerSettings
from detmtl.balancing.pcgrad import PcGradSettings
from detmtl.balancing.uncertainty import UncertaintySettings
from detmtl.structures.outside import OrElsewhere


def _kind(value: Any) -> str | None:
    """Returns the method that settings mean: `fixed` where they do not say."""
    return (
        value.get("kind", "fixed") if isinstance(value, Mapping) else getattr(value, "kind", None)
    )


AnyBalancer = Annotated[
    Annotated[FixedSettings, Tag("fixed")]
    | Annotated[UncertaintySettings, Tag("uncertainty")]
    | Annotated[DwaSettings, Tag("dwa")]
    | Annotated[GradNormSettings, Tag("gradnorm")]
    | Annotated[FamoSettings, Tag("famo")]
    | Annotated[GeometricSettings, Tag("geometric")]
    | Annotated[PcGradSettings, Tag("pcgrad")]
    | Annotated[TorchJdSettings, Tag("torchjd")],
    Discriminator(_kind),
    OrElsewhere(BalancerSettings),
]
"""Settings of a method, told apart by `kind`: a name of ours, or `package.module:Config`; without one
they are those of fixed weights."""

BALANCERS = (
    FixedSettings,
    UncertaintySettings,
    DwaSettings,
    GradNormSettings,
    FamoSettings,
    GeometricSettings,
    PcGradSettings,
    TorchJdSettings,
)
"""The members of the union."""
