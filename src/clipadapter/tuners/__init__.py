"""Tuners: methods that train through a tower. They have the interface of heads and are in their registry.

One file per method.
"""

from clipadapter.tuners.tower_tuner import TowerTuner

__all__ = ["TowerTuner"]
