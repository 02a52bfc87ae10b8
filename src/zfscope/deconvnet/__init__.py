"""Activations projected down to pixels. Source: Zeiler & Fergus (2014), Sec. 2.1."""

from zfscope.deconvnet.projection import project

__all__ = ["project"]
