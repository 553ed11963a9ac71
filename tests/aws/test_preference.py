"""Ray's autoscaler goes by our preference: spot first, and on-demand where there is no spot."""

import copy
import time

import pytest
import yaml

from fairseq_ray_plugin.aws import preference

FIRST, SECOND, LAST = "1_spot_g5_2xlarge", "2_spot_g5_4xlarge", "3_on_demand_g5_2xlarge"


class Autoscaler:
    """Ray's own parts, of which the autoscaler is made, on a simulated account."""

    def __init__(self, cloud):
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
        from ray.autoscaler._private.event_summarizer import EventSummarizer
        from ray.autoscaler._private.node_launcher import BaseNodeLauncher
        from ray.autoscaler._private.node_provider_availability_tracker import (
            NodeProviderAvailabilityTracker,
        )
        from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
        from ray.autoscaler._private.util import ConcurrentCounter, prepare_config

        assert 0 == cloud.aws("prepare", "--yes")
        config = prepare_config(yaml.safe_load(cloud.output.read_text()))
        self.config = bootstrap_aws(copy.deepcopy(config))
        provider = AWSNodeProvider(self.config["provider"], self.config["cluster_name"])
        self.ec2 = provider.ec2_fail_fast
        self.tracker = NodeProviderAvailabilityTracker(
            timer=lambda: time.time() + self.later_s, ttl=1800
        )
        self.later_s = 0.0
        self.pending = ConcurrentCounter()
        self.launcher = BaseNodeLauncher(
            provider, self.pending, EventSummarizer(), self.tracker, session_name="-"
        )
        types = self.config["available_node_types"]
        self.scheduler = ResourceDemandScheduler(provider, types, 2, "head", 1.0)

    def launches(self):
        """What it starts for one worker that is asked for, if it can be had."""
        wanted, _ = self.scheduler.get_nodes_to_launch(
            [], {}, [], {}, [], {}, [{"CPU": 1, "GPU": 1}], self.tracker.summary()
        )
        wanted.pop("head", None)  # nobody has told it that there is one
        [(name, count)] = wanted.items()
        self.pending.inc(name, count)
        self.launcher.launch_node(self.config, count, name)
        return name


@pytest.fixture
def autoscaler(cloud, monkeypatch):
    from ray.autoscaler._private.constants import AUTOSCALER_UTILIZATION_SCORER_KEY

    [start] = [c for c in yaml.safe_load(cloud.template.read_text())["head_start_ray_commands"]
               if "ray start" in c]  # fmt: skip
    setting = f"{AUTOSCALER_UTILIZATION_SCORER_KEY}=fairseq_ray_plugin.aws.preference.score"
    assert setting in start, "the head is not started with it"
    monkeypatch.setenv(*setting.split("="))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return Autoscaler(cloud)


@pytest.fixture
def sold_out(monkeypatch, autoscaler):
    """The types that AWS has none of, by market and instance type."""
    from botocore.exceptions import ClientError

    missing = set()
    create = autoscaler.ec2.create_instances

    def create_instances(**request):
        market = request.get("InstanceMarketOptions", {}).get("MarketType")
        if (market, request["InstanceType"]) in missing:
            error = {"Code": "InsufficientInstanceCapacity", "Message": "there is no capacity"}
            raise ClientError({"Error": error}, "RunInstances")
        return create(**request)

    monkeypatch.setattr(autoscaler.ec2, "create_instances", create_instances)
    return missing


def test_spot_is_taken_while_there_is_some(autoscaler, sold_out):
    assert [FIRST, FIRST] == [autoscaler.launches(), autoscaler.launches()]


def test_what_aws_refuses_is_done_without_for_a_while(autoscaler, sold_out):
    sold_out |= {("spot", "g5.2xlarge"), ("spot", "g5.4xlarge")}
    asked = [autoscaler.launches() for _ in range(4)]
    assert [FIRST, SECOND, LAST, LAST] == asked
    sold_out.clear()
    autoscaler.later_s = 1801
    assert FIRST == autoscaler.launches(), "spot instances are not tried again"


def test_ray_by_itself_asks_for_ever_for_what_it_is_refused(cloud, autoscaler, sold_out):
    """Why there is a preference: where this fails, Ray has one of its own."""
    from ray.autoscaler._private import resource_demand_scheduler

    autoscaler.scheduler.utilization_scorer = resource_demand_scheduler._default_utilization_scorer
    sold_out.add((None, "g5.2xlarge"))
    assert {LAST} == {autoscaler.launches() for _ in range(3)}


def test_a_type_without_what_is_asked_for_has_no_score(autoscaler):
    summary = autoscaler.tracker.summary()
    asked = {"node_availability_summary": summary}
    assert preference.score({"CPU": 8}, [{"GPU": 1}], FIRST, **asked) is None
    with_gpu = preference.score({"CPU": 8, "GPU": 1}, [{"CPU": 1}], FIRST, **asked)
    without = preference.score({"CPU": 8}, [{"CPU": 1}], "9_cpu", **asked)
    assert without > with_gpu, "a GPU is started for work without one"
