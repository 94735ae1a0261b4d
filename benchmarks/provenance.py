"""What every file under `results/` says of its origin, for the scripts here."""

from detmtl.report.provenance import REPOSITORY, commit, processor, provenance

__all__ = ["REPOSITORY", "commit", "processor", "provenance"]
