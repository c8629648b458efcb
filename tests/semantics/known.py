"""Where a guest is known to differ from the kernel, each with its reason; docs/explanation/differences.md tells users.

Keys: data path, then FILE:PROBE, for both versions without ".4" or ".6". A probe listed here may still find no
difference: some depend on the moment at which a signal arrives.
"""

SIGNALS = "a signal without SA_RESTART can end a trapped call before the backend has noticed it"
FREED = "the host's port is freed a moment after the guest's close or shutdown"

KNOWN: dict[tuple[str, str], str] = {
    **{
        (datapath, f"interrupt:{title}"): SIGNALS
        for datapath in ("direct", "relay", "ring")
        for title in ("bind_in_the_rain", "socket_in_the_rain")
    },
    # Over rings the guest's end is the relay's, too.
    **{
        (datapath, name): why
        for datapath in ("relay", "ring")
        for name, why in {
            "bind:closed_is_refused": FREED,
            "bind:listener_in_child_only": FREED,
        }.items()
    },
    ("relay", "bind:shutdown_listener"): FREED,
    ("ring", "bind:shutdown_listener"): "the host's listener outlives shutdown(2) of the guest's",
    ("ring", "options:changed_after"): "TCP_MAXSEG is that of the guest's own connection",
    ("ring", "stream:out_of_band"): "rings carry no urgent data",
}


def reason(datapath: str, file: str, title: str) -> str | None:
    """Why this probe may differ, None where it must not."""
    name = file.removeprefix("probe_").removesuffix(".py")
    wanted = (f"{name}:{title}", f"{name}:{title.rpartition('.')[0] or title}")
    return next((KNOWN[datapath, each] for each in wanted if (datapath, each) in KNOWN), None)
