# SPDX-License-Identifier: GPL-2.0-or-later
"""The moments at which this process may die with something half done, by name.

The code says reach("name") there, which does nothing unless a test has put a function into `on_reach` of this
module, in the same process: no setting, variable or message can. tests/crash kills the process with SIGKILL at each
of them, and fails for a name here that no run has come to.

Owner: whoever runs the test. Thread: the reactor's. A name comes as often as the thing happens: once for each part of
an upload, once for each share of a slot.
"""

from __future__ import annotations

from typing import Callable, Final

#: Name -> what has happened and what has not.
POINTS: Final[dict[str, str]] = {
    # an immutable share, store/upload.py
    "upload.spooled": "the spool file is made, with header and lease; the client has no writer yet",
    "upload.written": "a write is in the spool file; it is not answered",
    "upload.before-put": "the lock is held, all is in the spool; the PUT has not left",
    "upload.after-put": "the bucket has answered PUT or Complete; the index has no row",
    "upload.row": "the index has the row; what was read before is not forgotten, the client not answered",
    "upload.before-answer": "the spool file is gone; the client is not answered",
    "upload.aborting": "the client has given the upload up; the bucket still has the multipart upload, if there is one",
    # one larger than a part
    "multipart.before-create": "the first part is written; the bucket knows of nothing",
    "multipart.created": "the bucket has the multipart upload; nobody else knows its id",
    "multipart.part-sent": "a part was handed to the engine",
    "multipart.part-arrived": "the bucket has a part",
    "multipart.last-part": "the bucket has all parts; Complete has not left",
    "multipart.before-complete": "the lock is held; Complete has not left",
    # a whole local file (a mutable share), store/objects.py
    "file.created": "the bucket has the multipart upload of a mutable share, and no part of it",
    "file.part-arrived": "the bucket has a part of a mutable share's new version",
    "file.before-complete": "the bucket has all parts of it; the old version is the one that is visible",
    "file.aborting": "a part could not be stored; the bucket still has the multipart upload",
    # read-test-write, store/mutable.py
    "slot.brought": "copies of the slot's shares are in the scratch folder, unchanged",
    "slot.executed": "Tahoe's code has changed the copies; the bucket has the old versions",
    "slot.before-put": "one share is about to be put, others may have been",
    "slot.after-put": "the bucket has the new version of one share; the index has the old one",
    "slot.all-put": "the bucket has all new versions; index and cache have the old ones",
    "slot.row": "the index has the new version of one share; the cache has the old one",
    "slot.cached": "index and cache have the new version of one share; nothing is answered",
    "slot.before-delete": "the bucket has the new versions, the index not; one share is about to be deleted",
    "slot.after-delete": "the bucket has deleted one share; the index still has it",
    "slot.before-leases": "the last share is gone; the lease object is still there",
    "slot.before-answer": "everything is done; the client is not answered",
    "store.row-dropped": "a deleted share is out of the index, and still in cache and windows",
    # leases, store/overlay.py
    "lease.before-get": "what the lease object holds is not known; its GET has not left",
    "lease.after-get": "it was read; the index does not have it yet",
    "lease.before-put": "the new lease object is made; its PUT has not left",
    "lease.after-put": "the bucket has the new lease object; the index has the old leases",
    "lease.row": "the index has the new leases; the client is not answered",
    "lease.before-delete": "the shares are gone; the lease object is about to be deleted",
    "lease.after-delete": "the bucket has deleted the lease object; the index still has it",
    # what is unsure, store/slots.py
    "unsure.marked": "a write had no answer that tells; nobody has asked the bucket yet",
    "unsure.asked": "HEAD has said that the object is not there; the listing was not asked",
    "unsure.before-row": "what the bucket has is known; the index has what it had before",
    "unsure.settled": "the index has what the bucket has",
    # what a service applied late, store/late.py
    "late.before-put": "a share was undone by an older write; its local copy is about to be put again",
    "late.after-put": "the bucket has the acknowledged version again; the index has its older ETag",
    "late.linked": "the bucket has a new version of a share in doubt, the journal a copy of it and no row",
    "late.kept": "the journal has the acknowledged version; the index has the one before, nothing is answered",
    "late.forgotten": "what was in doubt is deleted in bucket and journal; the index still has it",
    # expiry, store/expiry.py and expiry_batch.py
    "expiry.confirmed": "the bucket is still this node's; no lock is taken",
    "expiry.taken": "the locks are taken and all is judged again; the multi-delete has not left",
    "expiry.deleted": "the bucket has deleted the shares; the index has them all",
    "expiry.row-dropped": "one of them is out of the index, others are not",
    "expiry.before-leases": "all of them are out of the index; their lease objects are there",
    "expiry.leases-deleted": "the bucket has deleted the lease objects; the index has them",
    "expiry.unlocked": "the locks are given back; what was deleted is not counted",
    "expiry.counted": "what was deleted is counted and written down",
    # the start, store/opening.py, ownership.py and reconcile.py
    "open.index": "the index is open and marked as not clean; spool and cache are as the last run left them",
    "open.tidied": "the spool is empty, the cache tidied; the bucket was not asked anything",
    "claim.read": "the owner's mark was read, and is this node's or nobody's",
    "claim.put": "the bucket has this start's mark; it was not read back",
    "claim.done": "the mark was read back; nothing is listed",
    "list.begun": "a new listing has begun: no row counts as seen by it",
    "list.page": "the rows of one page are in the index, others may be missing",
    "list.done": "the last page is noted; rows that it did not show are as they were",
    "list.noted": "lease objects that no page showed are in doubt; shares that none showed are not asked for yet",
    "open.confirmed": "the mark was looked at again; multipart uploads of earlier runs are there",
    "open.settled": "what was unsure is known, what an older write had undone is put right",
    "open.upload-removed": "one multipart upload of an earlier run is removed, others are not",
    "open.done": "everything is in order; nothing is served yet",
    # what the listing has not come to, store/reconcile.py
    "lookup.asked": "the bucket has told the shares of one storage index; the index has no row of them",
    "lookup.noted": "the index has them and counts as right about them; who asked is not answered",
    # shares that have vanished, store/store.py
    "vanish.before-drop": "the last HEAD has said 404, and the bucket is ours; the index has the row",
    "vanish.dropped": "the row is dropped; what was read of the share is not forgotten",
    # the stop, server.py, store/store.py, cache.py, index.py
    "stop.begun": "nothing new is begun; uploads are under way",
    "stop.uploads-ended": "uploads have their outcome; leases and read-test-writes may be under way",
    "close.begun": "timers are cancelled; operations under locks may be under way",
    "close.idle": "no lock is held; work in the background may be under way",
    "close.quiet": "nothing is under way; cache and index are as in service",
    "cache.written": "the cache's table is written under another name",
    "cache.closed": "the cache's table is in place; the index is not marked clean",
    "close.engine": "the engine has stopped; the index is not marked clean",
    "close.remembered": "how far a listing came is written down; the index is not marked clean",
    "index.flushed": "the index's rows are on the disk; it is not marked clean",
    "index.marked": "the clean mark is on the disk; the file is open",
    "index.closed": "the index is closed; its sum is that of the stop before",
    "index.summed": "the sum of the index is on the disk; its folder is not flushed",
}

#: Called with every name that is reached. None but in a test's own process.
on_reach: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """The process has come to the point `name`."""
    if on_reach is not None:
        on_reach(name)
