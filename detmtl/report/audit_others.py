"""The page of an audit of maps or of tags, whichever a store's teacher writes."""

from collections.abc import Sequence

import numpy as np

from detmtl.data.source import Source
from detmtl.report.audit_maps import maps_page
from detmtl.report.audit_sections import PICTURES
from detmtl.report.audit_tags import tags_page
from detmtl.silver.chosen import Chosen
from detmtl.silver.map_audit import MapAudit
from detmtl.silver.maps import ChosenMaps
from detmtl.silver.tag_audit import TagAudit


def others_page(
    chosen: Chosen,
    audit: MapAudit | TagAudit,
    gold: Source,
    calibrated: Sequence[np.ndarray] | None,
) -> str:
    """Returns the page; see `maps_page` and `tags_page`.

    Raises:
        InputError: as those, and as `measures` of what is chosen.
    """
    measures, teacher = chosen.measures(audit), chosen.store.card.name
    if not isinstance(chosen, ChosenMaps):
        return tags_page(measures, gold, teacher, calibrated)
    positions = [one.picture for one in measures.worst(PICTURES)]
    silver = chosen.labels(gold, positions, measures.audit)
    return maps_page(measures, gold, silver, teacher, calibrated)
