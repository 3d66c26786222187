"""Publishing without a hub: from a Celery task, a cron job, a Django view.

`Publisher` blocks, `AsyncPublisher` is awaited. Both write to the broker of a hub what one of its
nodes would write: in the same order, with the same cursors.
"""

from __future__ import annotations

try:
    from crossband.publisher.awaited import AsyncPublisher, AsyncRecipients
    from crossband.publisher.blocking import Publisher, Recipients
except ModuleNotFoundError as _error:
    raise ImportError(
        f"a publisher needs the extra: pip install 'crossband[redis]' ({_error})"
    ) from None

__all__ = ["AsyncPublisher", "AsyncRecipients", "Publisher", "Recipients"]
