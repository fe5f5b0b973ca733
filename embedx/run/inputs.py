"""Lists the inputs of a run."""

from __future__ import annotations

from embedx import sample
from embedx.config import ExtractConfig
from embedx.data.plan import Plan, build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.kinds import SourceOptions
from embedx.heartbeat import SILENT, Heartbeat


def list_inputs(config: ExtractConfig, heartbeat: Heartbeat = SILENT) -> Plan:
    """Lists the inputs that the settings name, or else the bundled sample's, and orders them into a plan.

    Tells the heartbeat how they were read, where the user may not expect it.

    Where splits are dropped there need be no other inputs.

    Raises:
        ConfigError: If sources can't be listed; it names every fault.
    """
    if config.drop_split and not config.data:
        return Plan({}, [], config.group_key)
    sources = parse_data(config.data or [str(sample.IMAGES)], SourceOptions.of(config))
    plan = build_plan(sources, config.group_key)
    for notice in plan.notices:
        heartbeat.tell(notice)
    return plan
