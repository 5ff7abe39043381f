"""The control groups of this process, of either version: the bounds that a container puts on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


class ControlGroup(NamedTuple):
    """A group's directory, which may be missing or without the files of its controller."""

    path: Path
    is_v2: bool


def own_groups(
    controller: str, root: Path = CONTROL_GROUPS, own: Path = OWN_GROUPS
) -> Iterator[ControlGroup]:
    """Give each group that binds this process, from its own up to the root."""
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, name = line.split(":", 2)
        is_v2 = not controllers
        if not is_v2 and controller not in controllers.split(","):
            continue
        mount = root if is_v2 else root / controller
        path = mount / name.lstrip("/")
        # In a container the name may be the host's, while the mount's root is the process's group.
        for group in (path, *path.parents):
            yield ControlGroup(group, is_v2)
            if group == mount:
                break
