"""zfscope: a microscope for convnets, after Zeiler & Fergus.

``build_network`` makes a network from its config, ``load_network`` opens a trained one.
"""

from zfscope.checkpoints import load_network
from zfscope.networks import ConvNet, build_network

__all__ = ["ConvNet", "build_network", "load_network"]
