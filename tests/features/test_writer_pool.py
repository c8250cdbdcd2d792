"""The pool of actors on a cluster whose nodes fail as they are told to. What Ray itself does is in test_ray_extract."""

from collections import Counter

import pytest

from clipadapter.errors import DataError
from clipadapter.features import ray_extract
from clipadapter.features.collection import WorkUnit
from clipadapter.features.ray_extract import RayJob, _WriterPool


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class Method:
    def __init__(self, actor, name):
        self.actor, self.name = actor, name

    def remote(self, _):
        self.actor.calls += 1
        return self.actor, self.name, self.actor.calls


class Actor:
    def __init__(self, is_bad):
        self.is_bad, self.calls = is_bad, 0
        self.open, self.write = Method(self, "open"), Method(self, "write")


class FailingCluster:
    """As the module ``ray``: actors die while they open, except those of `good`, by the order of their start."""

    class exceptions:  # noqa: N801
        RayError, RayTaskError = RayError, RayTaskError

    def __init__(self, nodes, good):
        self.nodes, self.good, self.finished = nodes, good, Counter()

    def remote(self, _):
        return self

    def options(self, **_):
        cluster = self

        class Class:
            @staticmethod
            def remote():
                cluster.finished["started"] += 1
                return Actor(is_bad=cluster.finished["started"] not in cluster.good)

        return Class

    def put(self, value):
        return value

    def cluster_resources(self):
        return {"CPU": self.nodes}

    def is_initialized(self):
        return True

    def kill(self, _):
        pass

    def wait(self, references, **_):
        return sorted(references, key=lambda one: not one[0].is_bad), []  # a failure comes before other results

    def get(self, reference):
        actor, name, _ = reference
        self.finished[name] += 1
        if actor.is_bad:
            raise RayError("the actor died: node B is out of memory")
        return (10, 0) if name == "write" else None


def run(cluster, shards=20):
    job = RayJob(None, None, None, "out", 1, 1, "cpu")
    units = [WorkUnit(f"{i}.tar", -1, b"", str(i)) for i in range(shards)]
    return _WriterPool(cluster, job, units, None, 0).run()


@pytest.mark.parametrize("good", [{1}, {4}])
def test_a_node_whose_actors_die_while_they_open_ends_no_call_in_which_others_write(good, monkeypatch):
    monkeypatch.setattr(ray_extract, "CLUSTER_CHECK_SECONDS", 0.0)
    cluster = FailingCluster(nodes=4, good=good)
    assert run(cluster) == (200, 0)
    assert cluster.finished["open"] > 3


def test_a_node_whose_actors_die_while_they_open_is_tried_again_only_after_a_wait(monkeypatch):
    monkeypatch.setattr(ray_extract, "CLUSTER_CHECK_SECONDS", 3600.0)
    cluster = FailingCluster(nodes=2, good={1})
    assert run(cluster) == (200, 0)
    assert cluster.finished["open"] == 2


def test_a_call_ends_if_every_actor_dies_while_it_opens(monkeypatch):
    monkeypatch.setattr(ray_extract, "CLUSTER_CHECK_SECONDS", 0.0)
    cluster = FailingCluster(nodes=2, good=())
    with pytest.raises(DataError, match=r"opened the encoder died . times, the last time: .* node B is out of memory"):
        run(cluster)
    assert cluster.finished["open"] in (3, 4)
