"""The dialects by name: which clients the server can talk to, and what it tells them of its policy.

A dialect turns a message into observations and noise keys, and chunks into a reply. Images and states reach the policy
as they come, unless the user asked for a translation (`--libero-client`, for one). A message that does not fit the
policy is a UserError of one sentence, and so is an image of a view that the policy was not trained with, unless the
user named the views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import la4vla
from la4vla.serve import libero_client
from la4vla.serve.evo1_dialect import EVO1_SLOTS, EVO1_WIDTH, Evo1
from la4vla.serve.openpi_dialect import STATE_KEY, VIEW_KEYS, Openpi
from la4vla.serve.own_dialect import La4vla
from la4vla.serve.policy_like import Served
from la4vla.types import UserError

SCHEMA = 3
DIALECTS = ("la4vla", "openpi", "evo1")
EMPTY: Mapping[str, Any] = MappingProxyType({})
PORTS = {"la4vla": 8000, "openpi": 8000, "evo1": 9000}  # where clients of each kind look (FACTS 4.6, 4.9)


def contract(policy: Served, dialect: str, max_batch: int, max_bytes: int) -> dict[str, Any]:
    """All that a client can check before it moves a robot. What training tells of states and images is empty where it
    is not known."""
    trained = policy.trained
    return {
        "type": "hello",
        "schema": SCHEMA,
        "la4vla": la4vla.__version__,
        "identity": policy.identity,
        "step": policy.step,
        "embodiment": policy.embodiment.to_dict(),
        "state_min": list(trained.state_min) if trained else [],
        "state_max": list(trained.state_max) if trained else [],
        "views": list(policy.views),
        "view_sizes": {name: [list(size) for size in sizes] for name, sizes in trained.view_sizes.items()}
        if trained
        else {},
        "image_size": trained.image_size if trained else None,
        "horizon": policy.horizon,
        "counts_on": policy.counts_on,
        "privileged": list(policy.privileged),
        "control_hz": policy.embodiment.control_hz,
        "versions": policy.versions,
        "dialect": dialect,
        "max_batch": max_batch,
        "max_bytes": max_bytes,
    }


def build(
    name: str,
    policy: Served,
    views: Sequence[str] = (),
    max_batch: int = 1,
    libero: bool = False,
    openpi: Mapping[str, str] = EMPTY,
    evo1: Mapping[str, Any] = EMPTY,
) -> La4vla | Openpi | Evo1:
    """The dialect of a name. Raises UserError for options that do not belong to it.

    views       `client's key=our view` each; empty for the order of the client's own keys
    max_batch   queries that one message may hold, where the dialect has messages of several
    libero      whether the client is the dialect's LIBERO client
    openpi      options of that dialect that were given: `state` (keys with commas between them), `prompt`
    evo1        options of that dialect that were given; the others are what its client needs
    """
    if name not in DIALECTS:
        raise UserError(f"dialect `{name}` does not exist; choose one of {', '.join(DIALECTS)}.")
    for dialect, options in (("openpi", openpi), ("evo1", evo1)):
        if name != dialect and options:
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in options)
            raise UserError(f"{flags}: only --dialect {dialect} has this option.")
    if name == "la4vla":
        if views:
            raise UserError("--view is for foreign clients; ours name the policy's views.")
        if libero:
            raise UserError("--libero-client is for foreign clients; ours show what our LIBERO env shows.")
        return La4vla(policy, max_batch)
    if policy.privileged:
        raise UserError(
            f"--dialect {name}: its clients do not send {', '.join(policy.privileged)}, which the policy "
            "needs; serve with --dialect la4vla, or with other settings."
        )
    if libero:
        libero_client.require_fit(policy.embodiment)
    if name == "openpi":
        return _openpi(policy, views, libero, openpi)
    return _evo1(policy, views, libero, evo1)


def _openpi(policy: Served, views: Sequence[str], libero: bool, options: Mapping[str, str]) -> Openpi:
    pairs = _view_pairs(policy, VIEW_KEYS, views)
    states = tuple(options.get("state", STATE_KEY).split(","))
    if not all(states):
        raise UserError("--state takes the client's keys of the state's parts with a comma between them, as in a,b.")
    return Openpi(policy, pairs, bool(views), libero, states, options.get("prompt", ""))


def _evo1(policy: Served, views: Sequence[str], libero: bool, options: Mapping[str, Any]) -> Evo1:
    keys = tuple(map(str, range(EVO1_SLOTS)))
    pairs = _view_pairs(policy, keys, views)
    if bad := [key for key in pairs if key not in keys]:
        raise UserError(f"--view {bad[0]}=...: Evo-1's images are numbered {', '.join(keys)}.")
    sizes = len(policy.embodiment.state.names), len(policy.embodiment.action.names)
    if max(sizes) > EVO1_WIDTH:
        raise UserError(f"Evo-1's clients have room for {EVO1_WIDTH} numbers; this embodiment has {max(sizes)}.")
    usual = ("rgb", "opening") if libero else ("bgr", "raw")
    filled = {"channels": usual[0], "gripper": usual[1], "trim_state": False, **options}
    if filled["gripper"] == "opening" and not policy.embodiment.action.dims("gripper"):
        raise UserError("--gripper opening: this embodiment's action has no dimension named gripper.")
    slots = {int(key): ours for key, ours in pairs.items()}
    return Evo1(policy, slots, bool(views), libero, **filled)


def _view_pairs(policy: Served, keys: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """The client's key -> our view: as the user said, or in order."""
    if not given:
        if len(policy.views) > len(keys):
            raise UserError(f"the policy has {len(policy.views)} views; name the client's key of each with --view.")
        return dict(zip(keys, policy.views, strict=False))
    pairs = {key: ours for key, _, ours in (pair.rpartition("=") for pair in given)}
    if sorted(pairs.values()) != sorted(policy.views) or len(pairs) != len(given) or not all(pairs):
        needed = ", ".join(policy.views) or "no view"
        raise UserError(f"--view takes KEY=VIEW once for each view of the policy, which has {needed}.")
    return pairs
