"""Occlusion maps. Source: Zeiler & Fergus (2014), Sec. 4.2, Fig. 7."""

from zfscope.occlusion.maps import Occlusion, occlude

__all__ = ["Occlusion", "occlude"]
