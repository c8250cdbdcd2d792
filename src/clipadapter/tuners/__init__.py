"""Tuners: methods that train through a tower, with the face of heads and in their registry. One file a method."""
