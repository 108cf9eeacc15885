"""The shipper's process: from the spools on disk into the database, exactly once."""

from serving.shipper.process import run_shipper
from serving.shipper.shipping import Shipper

__all__ = ["Shipper", "run_shipper"]
