"""Giving up root: the process becomes another user, and can never go back."""

from __future__ import annotations

import os
from collections.abc import Callable

from socketkit._system.credentials import group_id, primary_group, user_id
from socketkit.errors import PrivilegeError


def give_up(user: str | int, group: str | int | None) -> None:
    """Make the whole process, all its threads, run as this user and group, without supplementary groups; check that this is final.

    group: None: the user's own. Does nothing if the process runs as that user and group already, as a new generation does.
    Raises: PrivilegeError. If the reason is not that the process may not change its user, it may already have changed in part: end it.
    Source: setresuid(2), setgroups(2), nptl(7).
    """
    uid = user_id(user)
    gid = primary_group(user) if group is None else group_id(group)
    if not _is(uid, gid):
        try:
            os.setgroups([])  # first, because the others take away the right to do so
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        except OSError as error:
            reason = f"this process runs as user {os.geteuid()} and may not change that ({error.strerror})"
            raise PrivilegeError(str(user), reason, "start it as root, or leave user and group out") from error
        if not _is(uid, gid) or set(os.getgroups()) - {gid}:
            raise PrivilegeError(
                str(user), "the system has not changed all IDs of the process", "start it by other means, such as setpriv(1)"
            )
    if _succeeds(os.setuid) or (gid and _succeeds(os.setgid)):
        reason = "the process could become root again, by the capabilities or secure bits that it was started with"
        raise PrivilegeError(str(user), reason, "start it without CAP_SETUID, or as root with the usual secure bits")


def _is(uid: int, gid: int) -> bool:
    return os.getresuid() == (uid, uid, uid) and os.getresgid() == (gid, gid, gid)


def _succeeds(become: Callable[[int], None]) -> bool:
    try:
        become(0)
    except OSError:
        return False
    return True
