"""Tuners: methods that train through a tower, with the face of heads and in their registry. One file a method."""

from clipadapter.tuners.tower_tuner import TowerTuner

__all__ = ["TowerTuner"]
