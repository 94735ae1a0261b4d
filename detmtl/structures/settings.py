"""The base of every settings class; each part defines its own beside itself."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Immutable, typed settings; a name that is not a field is refused.

    Defaults live in the subclasses. A setting that has no sensible default has none.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
