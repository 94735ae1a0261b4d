"""The weights that a training starts from, as a hash."""

import hashlib

from detmtl.config import RunSettings
from detmtl.recipe import build


def start_digest(settings: RunSettings) -> str:
    """Returns a hash of the weights with which a run's network begins: equal for equal seeds."""
    model = build(settings, settings.data.label_space())
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
